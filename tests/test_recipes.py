"Recipes: what is divided, asked, kept, compared and refused, each task end to end with a tiny model."
import gzip, json, math, random, warnings
import pytest
from fastai.callback.core import Callback
from folders import read_rows
from real_data import real_data
from llmbook.cli import llmbook_finetune
from llmbook.commands.recipe import check_recipe, llmbook_recipe
from llmbook.core import UserError, set_seed
from llmbook.errors import _message
from llmbook.evaluate.overlap import bleu, bleu_limits
from llmbook.model.config import ModelConfig
from llmbook.model.hf import save_pretrained
from llmbook.model.transformer import Transformer
from llmbook.recipes.answers import instruction_recipe, summarization_recipe, translation_recipe
from llmbook.recipes.answers import first_words, instruction_scores, summary_scores
from llmbook.recipes.asking import PART, same_run, seen_of_parts
from llmbook.recipes.author import author_recipe, books_by_author, divide_passages, find_author, passage_items
from llmbook.recipes.code import code_recipe, code_scores, with_calls
from llmbook.recipes.compare import change_of, verdict
from llmbook.recipes.data import RecipeItem, parallel_records, recipe_data, split_files
from llmbook.recipes.domain import domain_recipe, former_texts, text_items, text_scores
from llmbook.recipes.run import answer_limit, fitting_items, mean_row
from llmbook.recipes.style import Copies, cut_passages, distinct, repetition, style_judge, words_of_all
from llmbook.reward.sandbox import can_limit
from llmbook.tokens.tokenizer import train_tokenizer
from llmbook.tune.chat import ChatFormat
from llmbook.tune.formats import conversation_of, load_chats
from llmbook.tune.tasks import load_task_file

COLOURS = 'red green blue old new big small wet'.split()
PAIRS = [dict(prompt=f'the {a} {b} house {i}', answer=f'{b} house') for a in COLOURS for b in COLOURS for i in (1, 2)]
FEW_STEPS = dict(method='full', steps=4, lr=1e-2, tokens=512, device='cpu', progress=False, samples=0, items=20)


@pytest.fixture(scope='module')
def tok():
    texts = [f"{r['prompt']} {r['answer']}" for r in PAIRS]
    return train_tokenizer([*texts, 'Summarize the following text in one or two sentences.', 'Translate into German.'], 400)


def tiny(tok, context=128):
    set_seed(0)
    return Transformer(ModelConfig(vocab_size=tok.get_vocab_size(), n_layer=2, d_model=32, n_head=2, context=context))


def run(recipe, tok, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return recipe((tiny(tok), tok), *args, **(FEW_STEPS | options))


def write(path, records):
    path.write_text('\n'.join(map(json.dumps, records)) + '\n')
    return path


def asked(text, *refs): return RecipeItem(text, [dict(role='user', content=text)], list(refs))


# ---- what is learned and what is asked ----

def questions(chats): return {chat.messages[-2]['content'] for chat in chats}


def test_every_record_is_accounted_for():
    records = [*PAIRS, dict(prompt='no answer'), dict(prompt='a', answer='b', label=False), 'text']
    data = recipe_data(records, items=20, train=50)
    assert data.total == len(records)
    assert len(data.items) == 20
    assert sum(chat.split == 'train' for chat in data.chats) == 50


def test_no_held_out_question_is_trained_on():
    twice = [dict(r, answer=a) for r in PAIRS for a in ('yes', 'no')]
    data = recipe_data(twice, items=30)
    assert not questions(data.chats) & {item.question for item in data.items}


def test_a_named_validation_split_is_held_out_and_another_one_is_cut():
    records = [dict(r, split='valid' if i < 25 else 'train') for i, r in enumerate(PAIRS)]
    data = recipe_data(records, items=25)
    assert {item.question for item in data.items} == {r['prompt'] for r in PAIRS[:25]}
    assert {chat.split for chat in data.chats} == {'train', 'valid'}


def test_a_test_split_leaves_the_validation_split_alone():
    names = ['test'] * 10 + ['valid'] * 10 + ['train'] * (len(PAIRS) - 20)
    data = recipe_data([dict(r, split=split) for r, split in zip(PAIRS, names)], items=10)
    assert {item.question for item in data.items} == {r['prompt'] for r in PAIRS[:10]}
    assert questions(c for c in data.chats if c.split == 'valid') == {r['prompt'] for r in PAIRS[10:20]}


def test_a_question_that_is_trained_on_too_is_set_aside():
    records = [dict(r, split='test' if i < 10 else 'train') for i, r in enumerate(PAIRS)]
    leak = dict(PAIRS[0], prompt=PAIRS[0]['prompt'].replace(' ', '  '), split='train')
    data = recipe_data([*records, leak], items=10)
    assert [r.reason for r in data.rejects] == ['also among the held-out questions']


def test_groups_stay_together():
    records = [dict(r, group=r['answer']) for r in PAIRS]
    data = recipe_data(records, items=20)
    assert not {item.more['group'] for item in data.items} & {chat.group for chat in data.chats}


def test_the_order_of_the_file_does_not_matter():
    forward = recipe_data(PAIRS, items=20)
    backward = recipe_data(PAIRS[::-1], items=20)
    assert {i.question for i in forward.items} == {i.question for i in backward.items}


def test_several_right_answers_are_kept_and_sentences_are_joined():
    chat, shape, why = conversation_of(dict(source=['One.', 'Two.'], target=['First.', 'Second.']))
    assert not why
    assert [m['content'] for m in chat.messages] == ['One. Two.', 'First.']
    assert chat.more == ['Second.']
    records = [dict(prompt=r['prompt'], answer=[r['answer'], 'another']) for r in PAIRS]
    assert recipe_data(records, items=5).items[0].refs[1] == 'another'


def test_the_instruction_stands_around_the_question_on_both_sides():
    data = recipe_data(PAIRS, instruction='Say {text} {braces}', items=5)
    assert all(q.startswith('Say the ') and q.endswith(' {braces}') for q in questions(data.chats))
    assert data.items[0].question == f"Say {data.items[0].more['text']} {{braces}}"


def test_a_folder_of_splits(tmp_path):
    write(tmp_path/'x.train.jsonl', PAIRS[:60])
    write(tmp_path/'x.dev.jsonl', PAIRS[60:80])
    data = recipe_data(tmp_path, items=20)
    assert {item.question for item in data.items} == {r['prompt'] for r in PAIRS[60:80]}
    assert data.source == str(tmp_path)


def test_lines_of_two_files(tmp_path):
    for language, side in dict(en='prompt', de='answer').items():
        with gzip.open(tmp_path/f'train.{language}.gz', 'wt') as f: f.write('\n'.join(r[side] for r in PAIRS))
    assert parallel_records(tmp_path, 'en', 'de')[:2] == [dict(r, split='train') for r in PAIRS[:2]]


# ---- asking ----

def test_a_kill_costs_no_more_than_a_part(tmp_path):
    calls = []
    def ask(part):
        calls.append(part)
        if len(calls) == 3: raise KeyboardInterrupt
        return [dict(n=n) for n in part]
    items = list(range(3 * PART))
    with pytest.raises(KeyboardInterrupt): seen_of_parts(items, ask, tmp_path/'seen.jsonl')
    seen = seen_of_parts(items, ask, tmp_path/'seen.jsonl')
    assert [s['n'] for s in seen] == items
    assert len(calls) == 4


@pytest.mark.parametrize('end', ['', '{"n": 1', 'garbage\n', '{"n": 99}\n' * 3])
def test_a_cut_file_is_answered_again_from_its_last_whole_part(tmp_path, end):
    items = list(range(2 * PART))
    whole = ''.join(json.dumps(dict(n=n)) + '\n' for n in range(PART))
    (tmp_path/'seen.jsonl').write_text(whole + end)
    seen = seen_of_parts(items, lambda part: [dict(n=n) for n in part], tmp_path/'seen.jsonl')
    assert [s['n'] for s in seen] == items
    assert [r['n'] for r in read_rows(tmp_path/'seen.jsonl')] == items


# ---- numbers by hand ----

def test_a_change_is_the_mean_of_the_differences():
    texts = [f'item {i}' for i in range(8)]
    old = mean_row('rougeL', [.5] * 8, texts)
    new = mean_row('rougeL', [.75] * 8, texts)
    change = change_of(old, new)
    assert change['change'] == .25
    assert change['p'] == 2 / 2**8  # all eight signs alike, of 256 ways
    assert change['better'] is True


def test_less_is_better_for_what_is_lost():
    texts = [f'item {i}' for i in range(8)]
    rows = [mean_row('perplexity', [x] * 8, texts) for x in (9., 8.)]
    assert change_of(*rows)['better'] is True
    assert 'better' in verdict(change_of(*rows))
    assert 'is worse' in verdict(change_of(*rows[::-1]))


def test_chance_is_called_chance():
    texts = [f'item {i}' for i in range(8)]
    change = change_of(mean_row('chrf', [1., 2.] * 4, texts), mean_row('chrf', [2., 1.] * 4, texts))
    assert change['better'] is None
    assert 'no difference is shown' in verdict(change)


def test_shares_have_the_interval_of_shares():
    r = mean_row('stops', [True] * 9 + [False], [str(i) for i in range(10)])
    assert (r['value'], round(r['low'], 3), round(r['high'], 3)) == (.9, .596, .982)
    assert mean_row('words', [1, 0, 1], list('abc'))['low'] == 0


def test_rouge_takes_the_nearest_reference():
    item = asked('x', 'the cat sat down', 'a cat')
    by_name = {r['metric']: r['value'] for r in summary_scores([item], [dict(answer='a cat', stopped=False)])}
    assert (by_name['rougeL'], by_name['words'], by_name['stops']) == (1, 2, 0)


def test_exact_answers_are_counted():
    items = [asked('1', 'one'), asked('2', 'two', 'zwei')]
    seen = [dict(answer='zwei', stopped=True), dict(answer='two', stopped=True)]
    by_name = {r['metric']: r['value'] for r in instruction_scores(items, seen)}
    assert by_name['exact_match'] == .5


def test_first_words_are_as_many_as_a_reference_has():
    assert first_words([asked('a b c d e', 'x y'), asked('f g h', 'x y z w')]) == ['a b c', 'f g h']


def test_a_bleu_that_cannot_be_judged_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        short = bleu(['zwei Tage'] * 4, ['zwei Tage'] * 4)[0]
    assert 'only 0 of 4 references' in bleu_limits(short)
    refs = ['the cat sat on the mat'] * 2
    assert 'smoothing' in bleu_limits(bleu(['the cat on mat'] * 2, refs)[0])
    assert bleu_limits(bleu(refs, refs)[0]) == ''


# ---- whole recipes ----

def test_summaries_end_to_end(tok, tmp_path):
    records = [dict(dialogue=r['prompt'], summary=r['answer']) for r in PAIRS]
    result = run(summarization_recipe, tok, records, tmp_path/'o')
    assert list(result.table.index) == ['rougeL', 'rouge1', 'rouge2', 'words', 'stops']
    assert len(read_rows(tmp_path/'o'/'items.jsonl')) == 20
    assert (tmp_path/'o'/'training'/'model'/'chat_template.jinja').is_file()
    stored = json.loads((tmp_path/'o'/'result.json').read_text())
    assert stored['verdict'] == result.verdict
    assert stored['changes'] == result.changes


def test_translations_end_to_end(tok, tmp_path):
    for language, side in dict(en='prompt', de='answer').items():
        (tmp_path/f'train.{language}').write_text('\n'.join(r[side] for r in PAIRS))
    result = run(translation_recipe, tok, tmp_path, tmp_path/'o')
    assert list(result.table.index) == ['chrf', 'bleu', 'stops']
    assert any('BLEU cannot be judged' in note for note in result.notes)
    assert result.items.question[0].startswith('Translate into German.')


def test_a_killed_recipe_gives_the_same_result(tok, tmp_path):
    class Kill(Callback):
        def after_step(self):
            if self.train_iter == 2: raise KeyboardInterrupt
    whole = run(instruction_recipe, tok, PAIRS, tmp_path/'whole')
    with pytest.raises(KeyboardInterrupt): run(instruction_recipe, tok, PAIRS, tmp_path/'cut', cbs=Kill())
    assert not (tmp_path/'cut'/'after.jsonl').exists()
    again = run(instruction_recipe, tok, PAIRS, tmp_path/'cut')
    assert again.changes == whole.changes
    assert again.items.equals(whole.items)


def test_adapters_leave_an_adapter(tok, tmp_path):
    result = run(instruction_recipe, tok, PAIRS, tmp_path/'o', method='lora', adapter=dict(r=2))
    assert (tmp_path/'o'/'training'/'adapter').is_dir()
    assert result.changes[0]['n'] == 20


def test_data_of_this_machine_are_the_default(tok, tmp_path, monkeypatch):
    import llmbook.recipes.answers as answers
    monkeypatch.setattr(answers, '_EMBEDDED', 120)
    result = run(translation_recipe, tok, None, tmp_path/'o', steps=2, items=10)
    assert result.changes[0]['n'] == 10


def test_the_command_prints_and_resumes(tok, tmp_path, capsys):
    save_pretrained(tiny(tok), tok, tmp_path/'model')
    data = write(tmp_path/'d.jsonl', [dict(ask=r['prompt'], say=r['answer']) for r in PAIRS])
    options = dict(out=str(tmp_path/'o'), method='full', steps=2, items=10, prompt='ask', answer='say', device='cpu')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for _ in range(2): llmbook_recipe('instructions', str(tmp_path/'model'), str(data), **options)
    said = capsys.readouterr().out
    assert said.count('chrf') >= 2
    assert said.count('wanted:') == 6


# ---- code ----

def function(body, name='f', args='x'): return f'def {name}({args}):\n    ' + body.replace('\n', '\n    ')


@pytest.mark.skipif(not can_limit(), reason='needs limits of the operating system')
def test_functions_are_scored():
    right, opened = function('return x[-1]'), function('return open(x)')
    items = [asked('last', right), asked('open', opened)]
    items = with_calls(items[::-1], 2)
    assert [item.question for item in items] == ['last', 'open']
    def scores(*answers):
        seen = [dict(answer=answer, stopped=True) for answer in answers]
        return {r['metric']: (r['value'], r['n']) for r in code_scores(items, seen)}
    assert scores(right, opened)['passes'] == (1, 1)
    assert scores(right, opened)['parses'] == (1, 2)
    assert scores(function('pass'), 'no')['passes'] == (0, 1)
    assert scores(function('pass'), 'no')['parses'] == (.5, 2)


def test_code_end_to_end(tok, tmp_path):
    records = [dict(prompt=f'def f(x):\n    """{r["prompt"]}"""', answer=f'def f(x):\n    return x[{i % 5}]')
               for i, r in enumerate(PAIRS)]
    result = run(code_recipe, tok, records, tmp_path/'o', items=6)
    assert list(result.table.index) == (['parses', 'passes', 'chrf', 'stops'] if can_limit() else ['parses', 'chrf', 'stops'])
    assert result.table.baseline['parses'] == '1.00'


# ---- an author's manner ----

def test_passages_hold_every_word_of_a_text():
    r = random.Random(0)
    text = '\n\n'.join(' '.join(r.choice(['A b.', '"Who?" it said.', 'Long one of many words!']) for _ in range(20))
                       for _ in range(5))
    found = cut_passages(text, 12)
    words = ' '.join(found).split()
    assert words == text.split()[:len(words)]
    assert len(text.split()) - len(words) < 6
    assert all(12 <= len(passage.split()) < 12 + 5 for passage in found[:-1])


def test_a_text_without_ends_is_cut(): assert {len(p.split()) for p in cut_passages('word ' * 100, 10)} == {20}


def test_variety_by_hand():
    assert distinct('a a a b', 1) == .5
    assert distinct('a b', 3) == 0
    assert repetition('a b c d a b c d', 4) == pytest.approx(1 / 5)
    copies = Copies(['one two three four'], n=3)
    assert copies.share('zero One, two; three five') == pytest.approx(1 / 3)
    assert copies.share('two') == 0


def test_words_of_one_author_alone_are_no_style():
    texts = dict(a=['the hero of Oz is here', 'Dorothy and the dog'], b=['the king of men', 'here is the sea'])
    assert set(words_of_all(texts)) == {'the', 'of', 'is', 'here'}


def written(end, seed, n):
    r = random.Random(seed)
    words = 'the a of it was not very old new cat dog house'.split()
    return [' '.join(r.choice(words) for _ in range(8)) + end for _ in range(n)]


def test_a_judge_is_as_good_as_it_says():
    own, others = written('; which it was.', 0, 60), written(', and it was!', 1, 60)
    judge = style_judge('a', dict(a=own[:40], b=others[:40]), dict(a=own[40:], b=others[40:]))
    assert (judge.right, judge.n) == (40, 40)
    same = written('.', 2, 200)
    judge = style_judge('a', dict(a=same[:60], b=same[60:120]), dict(a=same[120:160], b=same[160:]))
    assert .3 < judge.right / judge.n < .7


def test_the_end_of_a_book_is_held_out():
    text = ' '.join(f'Sentence number {i} is here.' for i in range(200))
    parts = divide_passages([text], 10)
    def numbers(part): return {int(w) for passage in parts[part] for w in passage.split() if w.isdigit()}
    assert max(numbers('train')) < min(numbers('valid'))
    assert max(numbers('valid')) < min(numbers('test')) - 1
    assert len(parts['test']) == 15


def books(n=60):
    return [dict(text='\n\n'.join(' '.join(written(end, k, 6)) for k in range(n)), author=name)
            for name, end in dict(Anna='; which it was.', Ben=', and it was!').items()]


def test_authors_end_to_end(tok, tmp_path):
    result = run(author_recipe, tok, books(), 'anna', tmp_path/'o', samples=4, items=8, words=20)
    assert list(result.table.index) == ['perplexity', 'style', 'distinct_1', 'distinct_2', 'repetition', 'copied']
    assert result.changes[0]['better'] is True
    assert result.table.author['perplexity'] == '-'
    again = run(author_recipe, tok, books(), 'anna', tmp_path/'o', samples=4, items=8, words=20)
    assert again.items.equals(result.items)


# ---- a domain ----

def test_pages_of_each_document_in_turn():
    items = text_items(['a line\n' * 700, 'b', '   '], 'old', 3)
    assert [item.more['document'] for item in items] == ['old 0', 'old 1', 'old 0']
    assert all(len(item.more['passage']) <= 4000 for item in text_items(['x' * 9000], 'old', 9))


def test_bits_by_hand():
    items = text_items(['a' * 100, 'b' * 100], 'domain', 2) + text_items(['c' * 50], 'former', 1)
    nats = [100 * math.log(2), 300 * math.log(2), 50 * math.log(2)]
    rows = text_scores(items, [dict(cost=[x, 10, size]) for x, size in zip(nats, (100, 100, 50))])
    found = {(r['metric'], r['group']): r['value'] for r in rows}
    assert found['bits_per_byte', 'domain'] == pytest.approx(2)
    assert found['bits_per_byte', 'former'] == pytest.approx(1)


def test_a_domain_end_to_end_and_again(tok, tmp_path):
    (tmp_path/'ships').mkdir()
    for i in range(40): (tmp_path/'ships'/f'{i}.txt').write_text('\n'.join(written(f' ship {i}.', i, 12)))
    options = dict(steps=4, lr=1e-2, items=10, preset='none', bs=4, seq_len=64, device='cpu', progress=False)
    def go():
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return domain_recipe((tiny(tok), tok), tmp_path/'ships', written('!', 1, 30), tmp_path/'o', **options)
    result = go()
    assert list(result.table.index)[:2] == ['bits_per_byte (domain)', 'bits_per_byte (former)']
    assert result.changes[0]['change'] < 0
    assert (tmp_path/'o'/'training'/'model'/'config.json').is_file()
    assert go().changes == result.changes


# ---- real data ----

def test_real_sets_are_read(tok):
    pairs = real_data('multi30k')
    assert len(parallel_records(pairs, 'en', 'de')) == 29_000 + 1_014
    data = recipe_data(real_data('scitldr'), items=50, train=20)
    assert max(len(item.refs) for item in data.items) > 1
    assert recipe_data(real_data('dialogsum', 'dialogsum.dev.jsonl'), items=20).total == 500
    assert recipe_data(real_data('raschka_instruction', 'instruction-data.json'), items=20).total == 1100


# ---- what is refused, before any work ----

@pytest.mark.parametrize('options, says', [
    (dict(items=0), 'items'), (dict(items=1.5), 'items'), (dict(train=0), 'train'), (dict(seed='x'), 'seed'),
    (dict(instruction='no place'), '{text}'), (dict(instruction=7), '{text}'), (dict(columns=dict(prompt=3)), 'columns'),
    (dict(columns=dict(prompt='nothing', answer='answer')), 'nothing')])
def test_bad_options_of_data(options, says):
    with pytest.raises(UserError, match=says): recipe_data(PAIRS, **options)


@pytest.mark.parametrize('source, says', [
    ([], 'empty'), ('nowhere.jsonl', 'nowhere'), (PAIRS[:1], 'hold out'), (7, 'expected a file'),
    ([dict(prompt='a')] * 9, 'hold out')])
def test_bad_sources(source, says):
    with pytest.raises(UserError, match=says): recipe_data(source)


def test_folders_that_say_too_little(tmp_path):
    with pytest.raises(UserError, match='found none'): split_files(tmp_path)
    with pytest.raises(UserError, match='train.en'): parallel_records(tmp_path, 'en', 'de')
    for name in ('a.jsonl', 'b.jsonl'): write(tmp_path/name, PAIRS)
    with pytest.raises(UserError, match='a.jsonl, b.jsonl'): split_files(tmp_path)
    (tmp_path/'train.en').write_text('a\nb\n')
    (tmp_path/'train.de').write_text('a\n')
    with pytest.raises(UserError, match='2 and 1'): parallel_records(tmp_path, 'en', 'de')
    (tmp_path/'train.de').write_bytes(b'\xff\xfe\xff')
    with pytest.raises(UserError, match='UTF-8'): parallel_records(tmp_path, 'en', 'de')


def test_questions_that_no_context_holds(tok):
    fmt = ChatFormat(tok)
    long = asked('house ' * 90, 'red')
    with pytest.raises(UserError, match='longer context'): fitting_items(fmt, [long], 64, 8)
    assert len(fitting_items(fmt, [long, asked('house', 'red')], 64, 8)[1]) == 1
    assert answer_limit(fmt, [asked('x', 'red ' * 99)], 64) == 32


def test_another_run_in_the_same_folder(tok, tmp_path):
    run(instruction_recipe, tok, PAIRS, tmp_path/'o', steps=2)
    for options in (dict(steps=3), dict(lr=1e-3), dict(items=19), dict(seed=1)):
        with pytest.raises(UserError, match='give another folder'):
            run(instruction_recipe, tok, PAIRS, tmp_path/'o', **(dict(steps=2) | options))


def test_recipes_without_data_or_model(tok):
    with pytest.raises(UserError, match='instruction, input and output'): instruction_recipe((tiny(tok), tok))
    with pytest.raises(UserError, match='name of a model'): instruction_recipe(7, PAIRS)


def test_recipes_without_texts(tok, tmp_path):
    model = tiny(tok), tok
    with pytest.raises(UserError, match='text and author'): author_recipe(model, author='x')
    with pytest.raises(UserError, match='text of a domain'): domain_recipe(model)
    with pytest.raises(UserError, match='2 names'): find_author('an', dict(Anna=[], Hans=[]))
    with pytest.raises(UserError, match='at least two'): author_recipe(model, books()[:1], 'Anna')
    with pytest.raises(UserError, match='give more text'): author_recipe(model, books(3), 'Anna')
    with pytest.raises(UserError, match='words'): author_recipe(model, books(), 'Anna', words=3)
    with pytest.raises(UserError, match='.txt'): books_by_author(tmp_path)
    with pytest.raises(UserError, match='found none'): former_texts([' '])
    with pytest.raises(UserError, match='items'): passage_items(['a b'], 0)


@pytest.mark.parametrize('name, options, says', [
    ('poetry', {}, 'expected a recipe'), ('summarization', dict(target='de'), '--target'),
    ('domain', dict(method='lora'), '--method'), ('author', dict(answer_tokens=3), '--answer-tokens')])
def test_commands_that_cannot_be(name, options, says):
    with pytest.raises(UserError, match=says): check_recipe(name, options)


def test_rows_of_other_items_are_not_compared():
    rows = [mean_row('words', [1, 2], texts) for texts in (['a', 'b'], ['a', 'c'])]
    with pytest.raises(UserError, match='same items'): change_of(*rows)
    with pytest.raises(UserError, match='same items'): change_of(rows[0], dict(rows[0], items=None))


# ---- the command of fine-tuning, and advice in a shell ----

def test_columns_are_named_for_fine_tuning_too(tok, tmp_path, capsys):
    save_pretrained(tiny(tok), tok, tmp_path/'model')
    data = write(tmp_path/'d.jsonl', [dict(ask=r['prompt'], say=r['answer']) for r in PAIRS])
    options = dict(steps=2, pairs=5, out=str(tmp_path/'o'), metric='bleu')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        llmbook_finetune(str(tmp_path/'model'), task=str(data), prompt='ask', answer='say', **options)
    assert 'BLEU cannot be judged' in capsys.readouterr().out
    with pytest.raises(UserError, match='with a file'):
        llmbook_finetune(str(tmp_path/'model'), task='translation', prompt='ask', **(options | dict(out=str(tmp_path/'p'))))
    with pytest.raises(UserError, match='name the columns'): load_task_file(data)


def test_advice_is_given_as_a_shell_takes_it():
    with pytest.raises(UserError, match='columns=dict') as caught: load_chats([dict(a=1)])
    assert _message(caught.value).endswith('name the columns, as in --prompt NAME --answer NAME')
