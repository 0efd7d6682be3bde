"""Write nbs/sidebar.yml: the start page, the book, then the stages with their folders, in the order of the flow."""
import yaml
from house import ROOT, notebooks, part

STAGES = {  # heading -> the folders of nbs/api that stand under it, each with what a reader finds there
    'Foundations': {
        'base': 'run folders, safe writes, seeds, devices, units; a tiny grammar to train on; errors in one line',
        'show': 'HTML and charts that every page, table and picture is made of',
    },
    'Data': {
        'read': 'files, formats and web archives become documents',
        'clean': 'personal data, language, repaired text',
        'filters': 'rules that drop a document, with a reason, and the presets that bundle them',
        'dedup': 'near-duplicates, repeated lines, overlap with evaluation sets',
        'tokens': 'tokenizer, token shards, shuffling, loaders, packing, mixtures of sources',
        'prepare': 'the whole preparation: splits, workers, the account of every document, the data card',
    },
    'Architecture': {
        'model': 'configuration, layers, the transformer, and the layouts of `transformers`',
        'plan': 'operations, memory, devices, scaling laws; a plan for minutes here or a cluster elsewhere',
    },
    'Pre-training': {
        'distributed': 'ranks and how they are started',
        'train': 'loss, masks, optimiser, precision, the Learner, and the callbacks of a training run',
        'checkpoint': 'what is written, which checkpoint is retained, how a run resumes, loss spikes',
        'parallel': 'one Learner on many devices, and its checkpoints',
        'pretrain': 'the learning-rate finder and a whole pre-training run',
    },
    'Writing': {'generate': 'sampling, decoding, text, filling masks'},
    'Fine-tuning': {
        'tune': 'chats, tasks, adapters, and a fine-tuning run',
        'prefer': 'preference pairs, their losses, the cached reference, reward models',
        'reward': 'verifiers, rollouts, and training by reward',
    },
    'Evaluation': {
        'evaluate': 'intervals, items, likelihoods, perplexity, overlap scores, toxicity, bias',
        'recipes': 'whole tasks, from data to a score before and after',
        'recall': 'what a model has learnt by heart, and where it stands in the training text',
        'fairness': 'measures of bias from published sets, each with its null, its target and its limits',
        'verdict': 'runs compared by item, ablations, the ledger of what was tried',
        'trial': 'scorers of toxicity on trial, and what is measured with them',
        'mitigate': 'six ways to lessen bias and toxicity, and what each of them costs',
        'people': 'people asked which text is better: plan, answers, agreement, strengths, when to stop',
    },
    'Report': {'report': 'runs read back and compared, learning curves, model card, report'},
    'Shipping': {'ship': 'a model in the formats of other tools, verified before it leaves'},
    'Notebook': {
        'widgets': 'browser of documents, dashboard, planner, chat',
        'teach': 'exercises of the book and how they are checked, its pictures and diagrams',
    },
    'The whole journey': {
        'app': 'the seven stages in one call, and the first commands',
        'commands': 'the commands of tuning, shipping and evaluation',
    },
}
HEAD = '# Written by tools/sidebar.py (make export); not edited by hand.\n'


PARTS = { # name -> (first chapter, last chapter, what a reader can do after it)
    'Begin': ('01', '02', 'see a model come into being, and tune one on a table of your own'),
    'From text to batches': ('03', '08', 'turn what lies about into text that a model may read, and into batches'),
    'The model': ('09', '15', 'choose a size, train it, look inside, and let it write'),
    'Tuning a model': ('16', '21', 'start from weights that others trained, and teach them a task, a tone, a skill'),
    'Judging a model': (
        '22', '27', 'say whether a model is better, whom it harms, what it remembers, and what to try next'),
    'Out of the house': ('28', '29', 'let a model leave the house, and go the whole way with your own text'),
}


def folder(path):
    "Return the name of a notebook's folder without its number."
    return path.parent.name.partition('_')[2]


def stage(path):
    "Return the heading that a notebook of the package stands under."
    return next(name for name, folders in STAGES.items() if folder(path) in folders)


def purpose(name):
    "Return what a reader finds in a folder of nbs/api, or ''."
    return next((folders[name] for folders in STAGES.values() if name in folders), '')


HEADS = dict(book='The book', records='Records')


def contents(root=ROOT):
    "Return the sidebar as Quarto reads it: the start page, then sections of files or of sections."
    start = []
    tree = {}  # heading -> files, or folder -> files
    for p in notebooks(root):
        name = p.relative_to(root/'nbs').as_posix()
        if part(p) == '': start.append(name)
        elif part(p) == 'api':
            folders = tree.setdefault(stage(p), {})
            folders.setdefault(folder(p), []).append(name)
        else: tree.setdefault(HEADS[part(p)], []).append(name)
    tree[HEADS['book']] = in_parts(tree[HEADS['book']])
    sections = [dict(section=head, contents=listed(inside)) for head, inside in tree.items()]
    return start + sections


def listed(inside):
    "Return a stage's contents: files as they are, several folders as sections of their own, one folder as its files."
    if isinstance(inside, list): return inside
    if len(inside) == 1: return next(iter(inside.values()))
    return [dict(section=name, contents=files) for name, files in inside.items()]


def in_parts(chapters):
    "Return the book's pages with its chapters in their parts: the course, the parts, then what belongs to all."
    numbers = {name: name.rpartition('/')[2][:2] for name in chapters}
    listed = [name for name in chapters if numbers[name] == '00']
    for part_name, (first, last, _) in PARTS.items():
        inside = [name for name in chapters if first <= numbers[name] <= last]
        if inside: listed.append(dict(section=part_name, contents=inside))
    return listed + [name for name in chapters if numbers[name] > '90']


def text(root=ROOT):
    "Return what nbs/sidebar.yml should hold."
    return HEAD + yaml.safe_dump({'website': {'sidebar': {'contents': contents(root)}}}, sort_keys=False)


if __name__ == '__main__':
    (ROOT/'nbs/sidebar.yml').write_text(text())
    print(f'nbs/sidebar.yml: {len(notebooks())} notebooks')
