"""Write the drawings that open the chapters into nbs/images/.

A drawing is a list of boxes and arrows (`llmbook.teach.diagram`); change it here and run this file.
"""
from house import ROOT
from llmbook.teach.diagram import Diagram


def journey():
    "Draw chapter 01: seven stages, on two rows."
    d = Diagram('The seven stages: data, tokens, plan, pre-training, fine-tuning, evaluation, export', 720, 150)
    d.box('1 data', 10, 8, 'clean, filter, unique', width=150)
    d.box('2 tokens', 193, 8, 'text as numbers', width=150)
    d.box('3 plan', 376, 8, 'what fits the time', 'purple', width=150)
    d.box('4 pre-training', 559, 8, 'guess the next token', 'purple', width=150)
    d.box('5 fine-tuning', 559, 90, 'do a task', 'purple', width=150)
    d.box('6 evaluation', 376, 90, 'how good, how fair', 'green', width=150)
    d.box('7 export', 193, 90, 'other tools open it', 'green', width=150)
    return d.arrows('1 data', '2 tokens', '3 plan', '4 pre-training', '5 fine-tuning', '6 evaluation', '7 export')


def cleaning():
    "Draw chapter 02: a document is changed, then judged."
    d = Diagram('A raw document is cleaned, which changes it; then filtered, which keeps it or drops it with a reason', 720, 150)
    d.box('raw text', 10, 48, 'as it was found', 'grey', width=130)
    d.box('clean', 190, 48, 'changes, never judges', width=160)
    d.box('filter', 400, 48, 'judges, never changes', 'purple', width=160)
    d.box('kept', 600, 8, 'goes on', 'green', width=110)
    d.box('dropped', 600, 88, 'with its reason', 'red', width=110)
    return d.arrows('raw text', 'clean', 'filter', 'kept').arrow('filter', 'dropped')


def duplicates():
    "Draw chapter 03: from texts to clusters without comparing all pairs."
    d = Diagram('Texts become sets of shingles, then short signatures; bands propose candidates, and only these are compared', 720, 72)
    d.box('texts', 6, 8, 'a million', 'grey', width=92)
    d.box('shingles', 130, 8, 'five words each', width=120)
    d.box('signature', 282, 8, '125 numbers', width=120)
    d.box('bands', 434, 8, 'who meets?', 'purple', width=110)
    d.box('compare', 576, 8, 'the few who met', 'green', width=138)
    return d.arrows('texts', 'shingles', 'signature', 'bands', 'compare')


def tokens():
    "Draw chapter 04: the way from characters to ids and into the model."
    d = Diagram('Text becomes bytes, bytes are joined into pieces, and each piece has an id that the model reads', 720, 72)
    d.box('text', 6, 8, 'the cat', 'grey', width=110)
    d.box('bytes', 150, 8, '116 104 101 32 ...', width=150)
    d.box('pieces', 334, 8, 'the | ␣cat', width=110)
    d.box('ids', 478, 8, '278 1394', 'purple', width=100)
    d.box('model', 612, 8, 'reads ids', 'green', width=100)
    return d.arrows('text', 'bytes', 'pieces', 'ids', 'model')


def batches():
    "Draw chapter 05: documents of all lengths become rows of one length."
    d = Diagram('Documents are packed into rows of one length, rows are put in a computed order, and cut into batches', 720, 72)
    d.box('documents', 6, 8, 'of every length', 'grey', width=140)
    d.box('rows', 190, 8, 'of 1,024 tokens', width=140)
    d.box('order', 374, 8, 'computed, not stored', 'purple', width=160)
    d.box('batch 57', 578, 8, 'by its number', 'green', width=136)
    return d.arrows('documents', 'rows', 'order', 'batch 57')


def transformer():
    "Draw chapter 06: the stream, and the boxes that read it and add to it."
    d = Diagram('A token is embedded; in each block a norm and attention, then a norm and a feed-forward layer, read the '
                'stream and add to it; a last norm and the head make logits', 720, 190)
    d.box('attention', 218, 8, 'tokens meet here', 'purple', 130, 46)
    d.box('feed-forward', 422, 8, 'each token alone', 'purple', 142, 46)
    d.box('norm 1', 134, 68, '', 'grey', 74, 34)
    d.box('norm 2', 358, 68, '', 'grey', 74, 34)
    d.box('embed', 6, 128, 'id to vector', 'blue', 96, 46)
    d.box('stream of vectors: each box adds to it', 132, 128, 'a block, repeated L times', 'blue', 436, 46)
    d.box('head', 608, 128, 'norm, logits', 'green', 108, 46)
    return stream_arrows(d)


def stream_arrows(d):
    "Add the arrows of the transformer: from the stream through a norm into a box, and back."
    for x, top, side in ((171, 108, 31), (395, 108, 31)):
        d.line((x, 128), (x, 105))
        d.line((x, 68), (x, side), (x + 44 if x == 171 else x + 30, side))
    d.line((283, 57), (283, 125))
    d.line((493, 57), (493, 125))
    return d.arrows('embed', 'stream of vectors: each box adds to it', 'head')


def pretraining():
    "Draw chapter 07: the loop of a training step."
    d = Diagram('A batch goes through the model, the loss measures the surprise, gradients flow back, the optimiser steps', 720, 150)
    d.box('batch', 10, 8, 'rows of tokens', 'grey', width=130)
    d.box('model', 190, 8, 'a probability for each', width=160)
    d.box('loss', 400, 8, 'surprise, in nats', 'purple', width=140)
    d.box('gradient', 400, 88, 'which way is down', 'purple', width=140)
    d.box('optimiser', 190, 88, 'one step', 'green', width=160)
    return d.arrows('batch', 'model', 'loss', 'gradient', 'optimiser', 'model')


def speed():
    "Draw chapter 08: the two limits of a step."
    d = Diagram('A step takes as long as the slower of two things: carrying numbers, and computing with them', 720, 150)
    d.box('numbers', 10, 48, '4, 2 or 1 bytes each', 'grey', width=150)
    d.box('carry', 230, 8, 'GB a second', width=150)
    d.box('compute', 230, 88, 'operations a second', 'purple', width=150)
    d.box('the slower one', 460, 48, 'is how long it takes', 'red', width=170)
    return d.arrow('numbers', 'carry').arrow('numbers', 'compute').arrow('carry', 'the slower one').arrow(
        'compute', 'the slower one')


def scaling():
    "Draw chapter 09: one batch, two ranks, one step."
    d = Diagram('A batch is shared between two ranks, each computes a gradient, the gradients are summed, and both step', 720, 150)
    d.box('batch', 10, 48, '16 rows', 'grey', width=110)
    d.box('rank 0', 180, 8, '8 rows, gradient', width=150)
    d.box('rank 1', 180, 88, '8 rows, gradient', width=150)
    d.box('sum', 400, 48, 'weighed by targets', 'purple', width=150)
    d.box('same step', 610, 48, 'on both', 'green', width=104)
    return d.arrow('batch', 'rank 0').arrow('batch', 'rank 1').arrow('rank 0', 'sum').arrow('rank 1', 'sum').arrow(
        'sum', 'same step')


def pairs():
    "Draw chapter 10: a table in, a model out, and a part that stays outside."
    d = Diagram('A table of pairs tunes a model; questions from outside the table show what was learnt', 720, 150)
    d.box('table', 10, 8, '60 questions, answers', 'grey', width=160)
    d.box('SmolLM2', 10, 88, '135 million weights', 'grey', width=160)
    d.box('tune', 240, 48, 'a thin correction', 'purple', width=150)
    d.box('ask', 450, 8, 'inside and outside', 'green', width=150)
    d.box('folder', 450, 88, 'other tools open it', 'green', width=150)
    return d.arrow('table', 'tune').arrow('SmolLM2', 'tune').arrow('tune', 'ask').arrow('tune', 'folder')


def scores():
    "Draw chapter 11: from two texts to a verdict."
    d = Diagram('A text and a reference become counts, counts become a score, and many scores become a mean with an interval', 720, 150)
    d.box('text', 10, 8, 'of the system', 'grey', width=130)
    d.box('reference', 10, 88, 'of a person', 'grey', width=130)
    d.box('counts', 190, 48, 'of shared words', width=140)
    d.box('score', 376, 48, 'one for each item', 'purple', width=140)
    d.box('verdict', 560, 48, 'mean and interval', 'green', width=150)
    return d.arrow('text', 'counts').arrow('reference', 'counts').arrows('counts', 'score', 'verdict')


DRAWINGS = {
    '01_journey': journey, '02_cleaning': cleaning, '03_duplicates': duplicates, '04_tokens': tokens,
    '05_batches': batches, '06_transformer': transformer, '07_pretraining': pretraining, '08_speed': speed,
    '09_scaling': scaling, '10_pairs': pairs, '11_scores': scores,
}


if __name__ == '__main__':
    for name, draw in DRAWINGS.items(): draw().save(ROOT/f'nbs/images/{name}.svg')
    print(f'nbs/images: {len(DRAWINGS)} drawings')
