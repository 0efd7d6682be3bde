"Fine-tuning: exact steps, kept moments, models and tokenizers from elsewhere, answers, files of pairs."
import csv, gzip, json, math, warnings
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from llmbook.core import UserError, derived_seed, import_transformers
from llmbook.journey import overlap_rows
from llmbook.model.config import FAMILIES, ModelConfig
from llmbook.model.hf import load_pretrained, save_pretrained
from llmbook.model.hf_wrap import as_lm
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import load_any, train_tokenizer
from llmbook.tune.finetune import answer_length, answers, finetune, finetune_learner, layer_groups
from llmbook.tune.pairs import Example
from llmbook.tune.tasks import METRICS, Task, format_prompt, load_task_file, pair_of, task_dls, write_chat_template

WORDS = [a + b for a in ('ka', 'lo', 'mi', 'ne') for b in ('ra', 'to', 'vi')]
PAIRS = [Example(f'{a} {b}', b) for a in WORDS for b in WORDS[:4]]
SPLITS = dict(train=PAIRS[:32], valid=PAIRS[32:40], test=PAIRS[40:])


@pytest.fixture(scope='module')
def tok(): return train_tokenizer([e.prompt for e in PAIRS] * 3, 320)


def small(tok, **options):
    torch.manual_seed(0)
    config = dict(vocab_size=tok.get_vocab_size(), n_layer=3, d_model=32, n_head=2, context=64) | options
    return Transformer(ModelConfig(**config))


@pytest.fixture(scope='module')
def foreign(tmp_path_factory):
    "Return a tokenizer as of GPT-2: bytes first, end-of-text last; read by `load_any`, which adds what it lacks."
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False))
    tok.add_special_tokens(['<|endoftext|>'])
    folder = tmp_path_factory.mktemp('foreign')
    tok.save(str(folder/'tokenizer.json'))
    return load_any(folder).tok


def gpt2(vocab_size):
    transformers = import_transformers()
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=vocab_size, n_positions=64, n_embd=32, n_layer=3, n_head=2,
                                     bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config).eval()


# ---- layer groups ----

@pytest.mark.parametrize('family', FAMILIES)
def test_every_parameter_is_in_one_group(tok, family):
    model = small(tok, family=family)
    groups = layer_groups(model)
    ids = [id(p) for group in groups for p in group]
    assert len(groups) == 4
    assert sorted(ids) == sorted(id(p) for p in model.parameters())


def test_groups_of_a_wrapped_model():
    model = as_lm(gpt2(320))
    groups = layer_groups(model)
    names = {id(p): name for name, p in model.named_parameters()}
    assert sum(map(len, groups)) == len(names)
    assert [names[id(p)].split('.')[-2] for p in groups[0]] == ['wte', 'wpe']
    for i in range(3): assert f'.h.{i}.' in names[id(groups[i + 1][0])]
    assert 'ln_f' in names[id(groups[-1][-1])]


class Counters(Callback):
    "Remembers how many steps the optimiser has taken with the last block and with the embedding."
    order, run_valid = 70, False
    def before_fit(self): self.seen = []
    def after_batch(self):
        model = self.learn.model
        self.seen.append((self.count(model.blocks[-1]), self.count(model.embed)))

    def count(self, module):
        "Return the steps that the optimiser has counted for a module, 0 before its first."
        states = [self.learn.opt.opt.state.get(p, {}) for p in module.parameters()]
        steps = [float(state['step']) for state in states if 'step' in state]
        return max(steps, default=0)


def test_opening_a_group_keeps_the_moments_of_the_others(tok):
    dls = task_dls(SPLITS, tok, bs=8, seq_len=64, steps=12, device='cpu')
    counters = Counters()
    learn = finetune_learner(small(tok), dls, cbs=[counters], share=.5)
    with learn.no_bar(), learn.no_logging(): learn.fit_wsd(1)
    last, first = zip(*counters.seen)
    assert list(last) == list(range(1, 13))
    assert first[0] == 0
    assert first[-1] == 12 - first.count(0)
    assert all(p.requires_grad for p in learn.model.parameters())


# ---- steps ----

@pytest.mark.parametrize('steps', [1, 2, 3, 5, 6, 7, 8, 13])
@pytest.mark.parametrize('evaluations', [1, 3, 4])
def test_as_many_steps_as_asked(tok, tmp_path, steps, evaluations):
    model = small(tok, n_layer=1)
    learn = finetune(model, tok, SPLITS, tmp_path, steps=steps, evaluations=evaluations, bs=4, device='cpu')
    assert learn.train_iter == steps
    assert 1 <= len(learn.recorder.values) <= evaluations


def test_two_passes_without_a_number_of_steps(tok, tmp_path):
    assert finetune(small(tok, n_layer=1), tok, SPLITS, tmp_path, bs=8, device='cpu').train_iter == 8


def test_the_best_weights_are_those_of_the_lowest_validation_loss(tok, tmp_path):
    options = dict(steps=12, lr=.05, bs=8, device='cpu')
    learn = finetune(small(tok), tok, SPLITS, tmp_path/'best', best=True, **options)
    lowest = min(values[1] for values in learn.recorder.values)
    with learn.no_bar(), learn.no_logging(): assert learn.validate()[0] == pytest.approx(lowest, abs=1e-6)


# ---- weights that are no numbers ----

def test_nan_is_refused_before_and_after(tok, tmp_path):
    broken = small(tok)
    broken.blocks[1].mlp.up_proj.weight.data[0, 0] = math.nan
    with pytest.raises(UserError, match='blocks.1.mlp.up_proj'):
        finetune(broken, tok, SPLITS, tmp_path/'nan', steps=2, bs=8, device='cpu')
    assert not (tmp_path/'nan').exists()


def test_a_rate_that_ruins_the_model_is_an_error_or_a_warning(tok, tmp_path):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        try: finetune(small(tok), tok, SPLITS, tmp_path, steps=8, lr=1e9, bs=8, device='cpu')
        except UserError as e: said.append(e)
    assert any('smaller lr' in str(getattr(w, 'message', w)) or 'nan' in str(getattr(w, 'message', w)) for w in said)


# ---- from elsewhere ----

def test_rows_of_a_task_hold_the_marks_of_a_foreign_tokenizer(foreign):
    from llmbook.tokens.tokenizer import special_ids
    mark = special_ids(foreign)
    dls = task_dls(SPLITS, foreign, bs=8, seq_len=64, device='cpu')
    x, y = dls.train.one_batch()
    assert set(x[:, 0].tolist()) == {mark['prompt']}
    assert (x[y == -100] == mark['pad']).any()
    assert (y == mark['eot']).sum() == len(y)


def test_a_wrapped_model_learns_a_task_with_its_own_tokenizer(foreign, tmp_path):
    model = as_lm(gpt2(foreign.get_vocab_size()))
    dls = task_dls(SPLITS, foreign, bs=8, seq_len=64, device='cpu')
    before, _ = finetune_learner(model, dls).validate()
    learn = finetune(model, foreign, SPLITS, tmp_path, steps=160, lr=2e-2, bs=16, device='cpu')
    after, *_ = learn.validate()
    assert after < .5 * before
    examples = SPLITS['test']
    got = answers(learn.model, foreign, [e.prompt for e in examples], max_new_tokens=8)
    right = [answer == example.answer for answer, example in zip(got, examples)]
    assert sum(right) >= 6, got


def test_a_model_without_rows_for_the_added_tokens_is_told_what_to_do(foreign, tmp_path):
    model = gpt2(foreign.get_vocab_size() - 3)
    with pytest.raises(UserError, match='resize_token_embeddings'):
        finetune(model, foreign, SPLITS, tmp_path, steps=2, bs=8, device='cpu')


def test_another_tokenizer_of_the_same_size_is_refused(tok, tmp_path):
    save_pretrained(small(tok), tok, tmp_path/'m')
    model, _ = load_pretrained(tmp_path/'m', device='cpu')
    other = train_tokenizer(['quite other words stand here'] * 20, tok.get_vocab_size())
    with pytest.raises(UserError, match='ids mean other texts'):
        finetune(model, other, SPLITS, tmp_path/'o', steps=2, bs=8, device='cpu')


def test_the_chat_template_gives_the_prompt_of_training(tok, tmp_path):
    save_pretrained(small(tok), tok, tmp_path)
    write_chat_template(tmp_path, tok)
    theirs = import_transformers().AutoTokenizer.from_pretrained(tmp_path)
    def text(messages, **options): return theirs.apply_chat_template(messages, tokenize=False, **options)
    question = dict(role='user', content='ka ra')
    assert text([question], add_generation_prompt=True) == '<|prompt|>ka ra<|answer|>'
    ids = theirs.apply_chat_template([question], add_generation_prompt=True, return_dict=True)['input_ids']
    assert ids == format_prompt(tok, 'ka ra')
    whole = [dict(role='system', content='Be brief.'), question, dict(role='assistant', content='ra'), question]
    assert text(whole) == '<|prompt|>Be brief.\n\nka ra<|answer|>ra<|endoftext|><|prompt|>ka ra'


# ---- answers and scores ----

def test_answers_may_be_as_long_as_references_where_the_context_allows_it(tok):
    model = small(tok)
    refs = ['ka', ' '.join(WORDS[:6])]
    limit, need = answer_length(model, tok, ['ka'], refs)
    assert limit == need > 5
    short, need = answer_length(model, tok, ['ka'], [' '.join(WORDS * 9)])
    assert short < need
    assert short >= 32


def test_one_text_is_one_prompt_and_the_order_of_prompts_does_not_matter(tok):
    model = small(tok)
    assert len(answers(model, tok, 'ka ra', max_new_tokens=4)) == 1
    prompts = [e.prompt + ' ra' * (i % 3) for i, e in enumerate(PAIRS)]
    together = answers(model, tok, prompts, max_new_tokens=4, batch_size=64)
    assert answers(model, tok, prompts, max_new_tokens=4, batch_size=5) == together


@pytest.mark.parametrize('metric', METRICS)
def test_space_around_a_reference_is_no_mistake(metric):
    rows = overlap_rows(Task('t', '', metric, SPLITS), ['yes it is', 'no'], [' yes it is', 'no\n'])
    values = {r['metric']: r['value'] for r in rows}
    assert values['exact_match'] == 1
    assert METRICS[metric] in values
    if 'rougeL' in values: assert values['rougeL'] == 1


def test_seeds_share_no_draw():
    draws = [derived_seed(seed, k) for seed in range(100) for k in range(100)]
    assert len(set(draws)) == 10_000
    assert derived_seed(1, 2, 3) != derived_seed(1, 3, 2)
    assert all(0 <= d < 2**64 for d in draws)


# ---- files of pairs ----

RECORDS = {
    'prompt': (dict(prompt='a', answer='b'), ('a', 'b')),
    'completion': (dict(prompt='a', completion='b'), ('a', 'b')),
    'alpaca': (dict(instruction='a', input='c', output='b'), ('a\n\nc', 'b')),
    'alpaca without input': (dict(instruction='a', input='', output='b'), ('a', 'b')),
    'dolly': (dict(instruction='a', context='c', response='b'), ('a\n\nc', 'b')),
    'messages': (dict(messages=[dict(role='user', content='a'), dict(role='assistant', content='b')]), ('a', 'b')),
}


@pytest.mark.parametrize('name', RECORDS)
def test_other_names_of_prompt_and_answer(name):
    record, pair = RECORDS[name]
    assert pair_of(record) == (*pair, '')


def write_pairs(path, records):
    if '.csv' in path.name:
        with open(path, 'w', newline='') as f:
            writer = csv.DictWriter(f, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
        data = path.read_bytes()
    elif '.jsonl' in path.name: data = '\n'.join(map(json.dumps, records)).encode()
    else: data = json.dumps(records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)


@pytest.mark.parametrize('name', ['a.jsonl', 'a.jsonl.gz', 'a.json', 'a.json.gz', 'a.csv', 'a.csv.gz'])
def test_every_form_of_file_gives_the_same_task(name, tmp_path):
    records = [dict(question=f'what is "{i}",\n{i}?', answer=f'it is {i}') for i in range(40)]
    write_pairs(tmp_path/name, records)
    task = load_task_file(tmp_path/name)
    write_pairs(tmp_path/'b.jsonl', records)
    assert task.splits == load_task_file(tmp_path/'b.jsonl').splits
    assert task.name == 'a'
    assert not task.rejects


def test_unknown_keys_are_named(tmp_path):
    (tmp_path/'a.jsonl').write_text('{"sentence": "x", "label": 1}\n' * 3)
    with pytest.raises(UserError, match=r'3 no prompt and answer among its keys \(sentence, label\)'):
        load_task_file(tmp_path/'a.jsonl')


def test_a_pair_of_the_test_split_is_not_trained_on(tmp_path):
    numbers_of = dict(train=range(10), valid=(3, 20), test=(1, 2, 3, 30))
    records = []
    for split, numbers in numbers_of.items():
        for i in numbers: records.append(dict(prompt=f'q{i}', answer=f'a{i}', split=split))
    write_pairs(tmp_path/'a.jsonl', records)
    task = load_task_file(tmp_path/'a.jsonl')
    def prompts(split): return [example.prompt for example in task.splits[split]]
    assert prompts('train') == ['q0', 'q4', 'q5', 'q6', 'q7', 'q8', 'q9']
    assert prompts('valid') == ['q20']
    reasons = sorted(reject.reason for reject in task.rejects)
    assert reasons == ['in train and in test'] * 3 + ['in valid and in test']


def test_what_is_all_in_the_test_split_is_said(tmp_path):
    records = [dict(prompt=f'q{i}', answer='a', split=split) for split in ('train', 'valid', 'test') for i in range(5)]
    write_pairs(tmp_path/'a.jsonl', records)
    with pytest.warns(UserWarning, match='all 5 pairs of train'): task = load_task_file(tmp_path/'a.jsonl')
    assert len(task.splits['train']) == 5


def test_a_file_that_is_mostly_broken_is_mentioned(tmp_path):
    good = [json.dumps(dict(prompt=f'q{i}', answer='a')) for i in range(30)]
    for broken, warned in ((5, False), (12, True)):
        (tmp_path/'a.jsonl').write_text('\n'.join(good + ['{broken'] * broken))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            assert len(load_task_file(tmp_path/'a.jsonl').rejects) == broken
        assert any(f'{broken} of {30 + broken} records' in str(w.message) for w in said) == warned


def test_rejects_are_written_with_their_reasons(tok, tmp_path):
    lines = [json.dumps(dict(prompt=e.prompt, answer=e.answer, split=s)) for s in ('train', 'valid') for e in SPLITS[s]]
    lines += ['{broken'] * 3 + [json.dumps(dict(prompt='ka ' * 200, answer='x', split='train'))] * 2
    (tmp_path/'a.jsonl').write_text('\n'.join(lines))
    finetune(small(tok), tok, load_task_file(tmp_path/'a.jsonl'), tmp_path/'o', steps=2, bs=8, device='cpu')
    rejects = [json.loads(line) for line in open(tmp_path/'o'/'rejects.jsonl')]
    assert [r['reason'] for r in rejects] == ['not JSON'] * 3 + ['longer than 64 tokens'] * 2


# ---- bad values ----

ODD = [None, '', 'x', -1, 0, 2.5, math.nan, math.inf, True, [], {}, [None], object()]


def calls(tok, folder):
    "Return each function of tasks and tuning with arguments that it takes; the test exchanges them one by one."
    from llmbook.tune import finetune as tuning, pairs, tasks
    model = small(tok, n_layer=1)
    dls = task_dls(SPLITS, tok, bs=8, seq_len=64, device='cpu')
    rows, _ = tasks.encode_examples(tok, SPLITS['train'], 64)
    path = folder/'fuzz.jsonl'
    write_pairs(path, [dict(prompt=f'q{i}', answer='a') for i in range(30)])
    return [
        (pairs.docstring_line, dict(doc='Return the sum of two numbers.', words=(3, 20))),
        (pairs.summarization_examples, dict(n=1, per_package=2, max_chars=100, seed=1, files=[])),
        (pairs.translation_examples, dict(seed=1, n=2, targets=('de',))),
        (tasks.check_metric, dict(metric='rouge')),
        (tasks.translation_task, dict(n=2, seed=1, valid=.1, test=.1, targets=('de',))),
        (tasks.pair_of, dict(record=dict(prompt='a', answer='b'))),
        (tasks.load_task_file, dict(path=path, metric='bleu', seed=1, valid=.1, test=.1)),
        (tasks.get_task, dict(name=str(path))),
        (tasks.format_prompt, dict(tok=tok, prompt='a')),
        (tasks.encode_examples, dict(tok=tok, examples=SPLITS['valid'], seq_len=64)),
        (tasks.TaskLoader, dict(rows=rows, bs=4, seq_len=64, steps=2, seed=1, multiple=8, pad=1)),
        (tasks.task_dls, dict(task=SPLITS, tok=tok, bs=4, seq_len=64, seed=1, steps=2, device='cpu')),
        (tuning.layer_groups, dict(model=model)),
        (tuning.open_groups, dict(pct=.5, n=3, share=.3)),
        (tuning.GradualUnfreeze, dict(share=.3)),
        (tuning.finetune_learner, dict(model=model, dls=dls, lr=.1, ratio=4., share=.3)),
        (tuning.answers, dict(model=model, tok=tok, prompts=['ka'], max_new_tokens=2, batch_size=2, temperature=0.,
                              seed=0)),
        (tuning.answer_length, dict(model=model, tok=tok, prompts=['ka'], refs=['ra'])),
        (tuning.finetune, dict(model=model, tok=tok, task=SPLITS, out=folder/'o', steps=1, bs=8, evaluations=1, lr=1e-3,
                               seed=1, device='cpu', ratio=4., share=.3)),
        (overlap_rows, dict(task=Task('t', '', 'bleu', SPLITS), preds=['a b c d'], refs=['a b c d'])),
    ]


def test_a_bad_value_is_a_user_error_or_works(tok, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unexpected = []
    for f, good in calls(tok, tmp_path):
        for name in good:
            for i, bad in enumerate(ODD):
                options = good | {name: bad}
                if 'out' in options and name != 'out': options['out'] = tmp_path/f'{name}-{i}'
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter('ignore')
                        f(**options)
                except UserError as e: assert 'expected' in str(e) or 'is damaged' in str(e), f'{f.__name__}: {e}'
                except Exception as e: unexpected.append(f'{f.__name__}({name}={bad!r}): {type(e).__name__}: {e}'[:150])
    assert not unexpected, '\n'.join(unexpected)
