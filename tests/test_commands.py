"What the commands say, keep and refuse."
import json, math, os, stat, warnings
from itertools import product
from pathlib import Path
import pytest, torch
from folders import read_rows
from foreign import gpt2_like
import llmbook.cli as cli
from llmbook.generate.text import Answer
from llmbook.core import UserError, import_transformers
from llmbook.generate.quantise import quantise, save_quantised
from llmbook.generate.text import generate
from llmbook.model.config import ModelConfig
from llmbook.model.hf import load_pretrained, save_pretrained
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import train_tokenizer
from broken_weights import break_weight

LINES = []
for what in product(('red', 'blue', 'old', 'new'), ('house', 'boat', 'hat'), ('here', 'gone')):
    LINES.append('the {} {} is {}'.format(*what))
PARTS = dict(train=range(0, 14), valid=range(14, 18), test=range(18, 24))


@pytest.fixture(scope='module')
def tok(): return train_tokenizer(LINES * 3, 330)


def small(tok):
    torch.manual_seed(0)
    return Transformer(ModelConfig(vocab_size=tok.get_vocab_size(), n_layer=2, d_model=32, n_head=2, context=64))


@pytest.fixture
def model(tok, tmp_path):
    save_pretrained(small(tok), tok, tmp_path/'model')
    return str(tmp_path/'model')


def records():
    rows = []
    for split, part in PARTS.items():
        for i in part:
            answer = LINES[i].split()[-1]
            rows.append(dict(prompt=LINES[i], answer=answer, split=split))
    return rows


def task_file(folder, lines, name='t.jsonl'):
    text = '\n'.join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder/name).write_text(text)
    return str(folder/name)


def tuned(model, tmp_path, lines=None, **options):
    task = task_file(tmp_path, lines or records())
    options = dict(out=str(tmp_path/'o'), steps=4) | options
    cli.llmbook_finetune(model, task=task, **options)
    return Path(options['out'])


# ---- fine-tuning ----

def test_what_is_left_out_is_said_and_kept(model, tmp_path, capsys):
    long = [dict(prompt='the ' * 99, answer='gone', split='train')] * 7
    out = tuned(model, tmp_path, records() + long + ['{broken'] * 5 + [dict(prompt='x', answer=' ')] * 3)
    said = capsys.readouterr().out
    assert '14 pairs to train on, 4 to validate' in said
    assert '15 set aside: 7 longer than 64 tokens, 5 not JSON, 3 no text in answer' in said
    assert len((out/'rejects.jsonl').read_text().splitlines()) == 15


def test_questions_and_answers_are_kept(model, tmp_path):
    out = tuned(model, tmp_path)
    lines = read_rows(out/'predictions.jsonl')
    assert [line['prompt'] for line in lines] == [LINES[i] for i in PARTS['test']]
    assert set(lines[0]) == {'prompt', 'reference', 'before', 'after'}


@pytest.mark.parametrize('metric, wanted, unwanted', [
    ('bleu', {'bleu', 'chrf'}, {'rougeL'}), ('rouge', {'rougeL'}, {'bleu'}), ('exact_match', set(), {'bleu', 'rougeL'}),
    (None, {'rougeL', 'bleu', 'chrf'}, set())])
def test_the_metric_is_the_one_that_was_asked_for(model, tmp_path, metric, wanted, unwanted):
    out = tuned(model, tmp_path, metric=metric)
    result = json.loads((out/'result.json').read_text())
    found = {r['metric'] for r in result['after']}
    assert wanted | {'exact_match'} <= found
    assert not unwanted & found


def test_answers_get_the_length_of_the_references(model, tmp_path, monkeypatch, capsys):
    asked = []
    def answers(model, tok, prompts, max_new_tokens=48, **options):
        asked.append(max_new_tokens)
        return ['' for _ in prompts]
    monkeypatch.setattr(cli, 'answers', answers)
    long_answer = ' '.join(['gone'] * 45)
    lines = [dict(r, prompt=r['prompt'][:9], answer=f'{long_answer} {i}') for i, r in enumerate(records())]
    tuned(model, tmp_path, lines)
    assert asked[0] == asked[1] > 45
    assert 'after, 6 of 6 answers are empty' in capsys.readouterr().out
    tuned(model, tmp_path, lines, answer_tokens=9, out=str(tmp_path/'short'))
    assert asked[2:] == [9, 9]
    assert 'no answer can be as long as the longest references' in capsys.readouterr().out


def test_a_tuned_model_can_be_handed_on(model, tmp_path, capsys):
    out = tuned(model, tmp_path)
    exported = tmp_path/'export'
    cli.llmbook_export(str(out/'model'), out=str(exported), texts=500)
    for folder in (out/'model', exported):
        theirs = import_transformers().AutoTokenizer.from_pretrained(folder)
        question = [dict(role='user', content='hi')]
        text = theirs.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
        assert text == '<|prompt|>hi<|answer|>'
        card = (folder/'README.md').read_text()
        assert 'apply_chat_template' in card
        assert '| after | exact_match |' in card
        umask = os.umask(0)
        os.umask(umask)
        for f in folder.iterdir(): assert stat.S_IMODE(f.stat().st_mode) == 0o666 & ~umask, f


def test_an_answer_of_a_model_that_was_never_tuned_comes_with_a_word(model, tmp_path, capsys):
    cli.llmbook_generate(model, 'the red boat', answer=True, tokens=2)
    assert 'was not tuned to answer: it has no chat template' in capsys.readouterr().err
    cli.llmbook_generate(model, 'the red boat', tokens=2)
    assert capsys.readouterr().err == ''
    folder = tuned(model, tmp_path)/'model'
    capsys.readouterr()
    cli.llmbook_generate(str(folder), 'the red boat', answer=True, tokens=2)
    (folder/'chat_template.jinja').unlink() # as version 0.1.0 left a tuned model
    cli.llmbook_generate(str(folder), 'the red boat', answer=True, tokens=2)
    assert 'not tuned' not in capsys.readouterr().err


def test_a_run_named_twice_is_said(tmp_path, capsys):
    from llmbook.report.example import example_run
    run, other = str(example_run(tmp_path/'a')), str(example_run(tmp_path/'b'))
    cli.llmbook_compare(run, run + '/.')
    assert 'is named twice: a run does not differ from itself' in capsys.readouterr().err
    cli.llmbook_compare(run, other)
    assert capsys.readouterr().err == ''


def test_the_lines_of_the_card_run(model, tmp_path, monkeypatch, capsys):
    import_transformers()
    for folder in (tuned(model, tmp_path)/'model', Path(tmp_path/'plain')):
        if not folder.exists(): cli.llmbook_export(model, out=str(folder), texts=500)
        code = (folder/'README.md').read_text().split('```python\n')[1].split('```')[0]
        monkeypatch.chdir(folder)
        exec(code, {})


def test_a_folder_of_transformers_with_its_own_tokenizer_can_be_tuned(tmp_path):
    hub = tmp_path/'hub'
    own = gpt2_like(LINES, 280, '<|endoftext|>')
    end = own.token_to_id('<|endoftext|>')
    transformers = import_transformers()
    config = transformers.GPT2Config(vocab_size=own.get_vocab_size(), n_positions=64, n_embd=32, n_layer=2, n_head=2,
                                     bos_token_id=end, eos_token_id=end)
    transformers.GPT2LMHeadModel(config).save_pretrained(hub)
    own.save(str(hub/'tokenizer.json'))
    out = tuned(str(hub), tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(out/'model')
    model = transformers.AutoModelForCausalLM.from_pretrained(out/'model')
    assert theirs.eos_token_id == end == model.config.eos_token_id
    assert len(theirs) <= model.config.vocab_size
    text = theirs.apply_chat_template([dict(role='user', content='hi')], add_generation_prompt=True, tokenize=False)
    assert text == '<|prompt|>hi<|answer|>'
    assert max(theirs(text)['input_ids']) < model.config.vocab_size


def test_a_run_that_gets_no_better_can_stop(model, tmp_path):
    from llmbook.train.history import read_history
    out = tuned(model, tmp_path, steps=40, evaluations=20, lr=3., patience=1)
    assert max(r['step'] for r in read_history(out/'history.csv')) < 40


# ---- weights that are no numbers ----

@pytest.fixture
def broken(tok, tmp_path):
    save_pretrained(small(tok), tok, tmp_path/'bad')
    break_weight(tmp_path/'bad', 'model.layers.0.self_attn.q_proj.weight', math.nan)
    return str(tmp_path/'bad')


@pytest.mark.parametrize('command', ['finetune', 'export', 'generate', 'evaluate'])
def test_weights_of_nan_are_refused_and_leave_nothing(broken, tmp_path, command):
    out = str(tmp_path/'made'/'here')
    task = task_file(tmp_path, records())
    calls = dict(
        finetune=lambda: cli.llmbook_finetune(broken, task=task, out=out),
        export=lambda: cli.llmbook_export(broken, out=out),
        generate=lambda: cli.llmbook_generate(broken, 'the'),
        evaluate=lambda: cli.llmbook_evaluate(broken, out=out),
    )
    with pytest.raises(UserError, match='NaN or infinity in .*q_proj'): calls[command]()
    assert not (tmp_path/'made').exists()


def test_an_export_that_gives_other_logits_is_refused(model, tmp_path, monkeypatch):
    from llmbook.ship import verify
    for gap in (math.nan, 1e-3):
        monkeypatch.setattr(verify, '_largest', lambda *args: gap)
        with pytest.raises(UserError, match='logits, transformers: .*, expected 1.0e-04'):
            cli.llmbook_export(model, out=str(tmp_path/'e'), gguf='none', texts=10)
        assert not (tmp_path/'e').exists()


# ---- evaluation ----

def test_evaluation_says_what_it_counts(model, tmp_path, capsys):
    paths = []
    texts = ['the red house\nthe old hat\nthe new boat', 'the blue hat is here\nthe red boat is gone']
    for i, text in enumerate(texts):
        (tmp_path/f'{i}.txt').write_text(text)
        paths.append(str(tmp_path/f'{i}.txt'))
    cli.llmbook_evaluate(model, *paths, out=str(tmp_path/'e.json'), prompts=4)
    said = capsys.readouterr().out
    assert 'n counts files' in said
    assert 'continuing 4 beginnings' in said
    assert 'per word' in said
    written = json.loads((tmp_path/'e.json').read_text())
    assert {'word_perplexity', 'byte_perplexity'} <= {r['metric'] for r in written['sides']}
    rows = written['rows']
    assert {r['n'] for r in rows if r['metric'] == 'toxicity_probability'} == {4}
    cli.llmbook_evaluate(model, *paths, out=str(tmp_path/'e.json'), prompts=40)
    assert '5 beginnings to continue: there are no 40' in capsys.readouterr().out
    cli.llmbook_evaluate(model, *paths, out=str(tmp_path/'f.json'), prompts=1, stride=3)
    strided = json.loads((tmp_path/'f.json').read_text())
    assert all('|stride:3|' in r['signature'] for r in strided['rows'][:2] + strided['sides'])


def test_empty_continuations_are_said(model, tmp_path, monkeypatch, capsys):
    from llmbook import journey
    answers = [Answer(text, 1, True) for text in ('', 'one', 'two')]
    monkeypatch.setattr(journey, 'generate_answers', lambda model, tok, starts, **options: answers)
    cli.llmbook_evaluate(model, out=str(tmp_path/'e.json'), prompts=3)
    assert '4 of 12 continuations are empty' in capsys.readouterr().out


def test_two_seeds_share_no_draw(model, tmp_path, monkeypatch):
    from llmbook import journey
    seeds = []
    def write(model, tok, starts, seed=0, **options):
        seeds.append(seed)
        return [Answer('text', 1, True) for _ in starts]
    monkeypatch.setattr(journey, 'generate_answers', write)
    for seed in (0, 1):
        cli.llmbook_evaluate(model, out=str(tmp_path/'e.json'), prompts=2, seed=seed)
    assert len(set(seeds)) == 8


# ---- the run ----

def test_a_run_takes_files_of_pairs(tmp_path):
    from llmbook.journey import Settings, task_name
    path = task_file(tmp_path, records(), 'my pairs.jsonl')
    s = Settings(tasks=f'translation,{path}')
    assert [task_name(task) for task in s.tasks] == ['translation', 'my pairs']
    with pytest.raises(UserError, match='files of pairs that exist'):
        Settings(tasks='missing.jsonl')
    with pytest.raises(UserError, match='twice'): Settings(tasks=[path, path])


def test_a_task_of_a_file_is_tuned_in_a_folder_of_its_name(model, tok, tmp_path, monkeypatch):
    from llmbook import journey
    from llmbook.core import RunFolder
    path = task_file(tmp_path, records(), 'mine.jsonl')
    run = RunFolder(tmp_path/'run')
    save_pretrained(small(tok), tok, run/'pretrain'/'model')
    monkeypatch.setattr(journey, 'read_plan', lambda path: None)
    monkeypatch.setattr(journey, 'task_steps', lambda *args: 4)
    answer = journey.finetune_stage(run, journey.Settings(tasks=path), path)
    assert set(answer) == {'before', 'after'}
    assert (run/'finetune'/'mine'/'predictions.jsonl').exists()
    tuned = run/'finetune'/'mine'/'model'
    assert (tuned/'chat_template.jinja').exists()
    readme = (tuned/'README.md').read_text()
    assert '## Fine-tuned on' in readme
    assert 'apply_chat_template' in readme
    opened, own = load_pretrained(tuned, device='cpu')
    assert own.get_vocab() == tok.get_vocab() and opened.config == small(tok).config
    from llmbook.report.report import _tuned_folders
    from llmbook.report.runs import read_run
    assert 'run/finetune/mine/model' in str(_tuned_folders(read_run(run.path))[0])


def test_a_run_that_failed_at_once_may_be_asked_for_something_else(tmp_path, monkeypatch):
    from llmbook import journey
    def fail(run, s): raise UserError('expected text, found none')
    monkeypatch.setattr(journey, 'data_stage', fail)
    for seed in (1, 2):
        with pytest.raises(UserError, match='expected text'):
            cli.llmbook_run(out=str(tmp_path/'r'), seed=seed)
        assert not (tmp_path/'r').exists()


# ---- bad values ----

ODD = [None, '', 'x', -1, 0, 2.5, math.nan, math.inf, True, [], {}, object()]


def calls(model, folder):
    "Return each command with arguments that it takes; the test exchanges them one by one."
    task = task_file(folder, records())
    out = str(folder/'fresh')
    (folder/'text.txt').write_text('the red house is here')
    return [
        (cli.llmbook_run, dict(out=out, minutes=1., seed=1, sources='embedded', max_bytes=1000, vocab_size=400,
                               tasks='translation')),
        (cli.llmbook_plan, dict(minutes=1., device='h100', count=1, hours=1., price=1., size='nano', ratio=20.,
                                precision='bfloat16', recompute=0, mfu=.4, vocab_size=400, tokens=10_000, seed=1)),
        (cli.llmbook_prepare, dict(out=out, preset='none', vocab_size=400, max_bytes=1000, personal='none',
                                   similarity=.8, repeats=0, seed=1)),
        (cli.llmbook_pretrain, dict(data=str(folder/'none'), size='pico', out=out, minutes=1., seed=1,
                                    checkpoint_minutes=.5, keep=1, parallel='ddp')),
        (cli.llmbook_finetune, dict(model=model, task=task, out=out, steps=1, lr=1e-3, pairs=1, seed=1, bs=8,
                                    metric='bleu', answer_tokens=2, evaluations=1, best=False)),
        (cli.llmbook_generate, dict(model=model, prompt='the', tokens=1, temperature=.5, top_p=.9, top_k=2, min_p=.1,
                                    repetition_penalty=1., stop='x', stream=False, n=1, seed=1, answer=False,
                                    dtype='float32')),
        (cli.llmbook_generate, dict(model=model, tokens=1, choice='a|b')),
        (cli.llmbook_generate, dict(model=model, tokens=1, regex='a')),
        (cli.llmbook_generate, dict(model=model, tokens=1, schema='{"type": "integer"}')),
        (cli.llmbook_evaluate, dict(model=model, out=str(folder/'e.json'), prompts=1, seed=1)),
        (cli.llmbook_export, dict(model=model, out=out)),
    ]


def test_an_answer_is_held_to_a_form(model, tmp_path):
    (tmp_path/'age.json').write_text('{"type": "integer", "minimum": 10, "maximum": 99}')
    options = dict(prompt='the', n=3)
    for text in cli.llmbook_generate(model, choice=' yes| no', **options): assert text in ('the yes', 'the no')
    for text in cli.llmbook_generate(model, regex='[a-c]{3}', **options): assert set(text[3:]) <= set('abc')
    for text in cli.llmbook_generate(model, schema=str(tmp_path/'age.json'), **options): assert 10 <= int(text[3:]) < 100
    with pytest.raises(UserError, match='found no file'): cli.llmbook_generate(model, schema='none.json')


def test_a_quantised_model_is_opened_by_its_folder(model, tmp_path):
    few, tok = load_pretrained(model)
    save_quantised(quantise(few, 'int8', speed=False, show=False), tok, tmp_path/'few')
    options = dict(prompt='the', tokens=5, temperature=0)
    assert cli.llmbook_generate(str(tmp_path/'few'), **options) == ['the' + generate(few, tok, 'the', 5, temperature=0)[0]]


def test_a_bad_value_is_a_user_error_or_works(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    def nothing(*args, **options): raise UserError('expected to get here: the arguments are taken')
    for heavy in ('journey', 'prepare', 'finetune', 'continuation_rows', 'save_pretrained', 'ship'):
        monkeypatch.setattr(cli, heavy, nothing)
    unexpected = []
    for f, good in calls(model, tmp_path):
        for name in good:
            for bad in ODD:
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter('ignore')
                        f(**(good | {name: bad}))
                except UserError as e:
                    if 'expected' not in str(e): unexpected.append(f'{f.__name__}({name}={bad!r}) says: {e}'[:150])
                except Exception as e: unexpected.append(f'{f.__name__}({name}={bad!r}): {type(e).__name__}: {e}'[:150])
                if (tmp_path/'fresh').exists(): unexpected.append(f'{f.__name__}({name}={bad!r}) leaves a folder')
    assert not unexpected, '\n'.join(unexpected)
