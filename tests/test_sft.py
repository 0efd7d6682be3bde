"Tuning on chats: what is divided, trained, looked at, written and refused."
import copy, json, os, subprocess, sys
from pathlib import Path
import pytest, torch
from fastai.callback.core import Callback
from llmbook.core import UserError, import_transformers, set_seed
from llmbook.model.config import ModelConfig
from llmbook.model.hf import load_pretrained
from llmbook.model.hf_wrap import as_lm
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import train_tokenizer
from llmbook.tune.adapters import adapted_layers, load_adapters
from llmbook.tune.chat import ChatFormat, Conversation
from llmbook.tune.groups import show_groups
from llmbook.tune.sft import METHODS, RunCost, chat_learner, prepare_chats, set_method, sft, tuning_cost, usual_rate
from llmbook.tune.watch import ChatWatch, chat_answers, role_loss, text_bits

WORDS = 'red green blue one two three four five'.split()
RECORDS = [dict(prompt=f'say {w} {i}', answer=f'{w}!') for w in WORDS for i in range(6)]


@pytest.fixture(scope='module')
def tok(): return train_tokenizer([f'{r["prompt"]} {r["answer"]}' for r in RECORDS], 330)


@pytest.fixture(scope='module')
def fmt(tok): return ChatFormat(tok)


@pytest.fixture
def model(tok): return small(tok)


def small(tok, **options):
    set_seed(0)
    sizes = dict(vocab_size=tok.get_vocab_size(), n_layer=2, d_model=64, n_head=2, n_kv_head=1, context=64)
    return Transformer(ModelConfig(**(sizes | options)))


def neox(tok):
    transformers = import_transformers()
    set_seed(0)
    config = transformers.GPTNeoXConfig(vocab_size=tok.get_vocab_size(), hidden_size=32, num_hidden_layers=2,
                                        num_attention_heads=2, intermediate_size=64, max_position_embeddings=64)
    return transformers.GPTNeoXForCausalLM(config)


# ---- data

def test_in_is_used_and_set_aside(fmt):
    bad = [dict(prompt='no answer'), 'text', dict(prompt='x' * 900, answer='y')]
    data = prepare_chats([*RECORDS, *bad], fmt, seq_len=64)
    assert data.total == len(RECORDS) + 3
    assert sum(map(len, data.rows.values())) + len(data.rejects) == data.total
    assert len({r.id for r in data.rejects}) == 3


def test_a_question_stands_in_one_split_alone(fmt):
    twice = [dict(r, answer=a) for r in RECORDS for a in ('yes', 'no')]
    data = prepare_chats(twice, fmt)
    asked = {split: {chat.messages[0]['content'] for chat in chats} for split, chats in data.chats.items()}
    assert not asked['train'] & asked['valid']


def said(*roles): return [dict(role=role, content='red one') for role in roles]


def test_what_asks_nothing_does_not_end_the_run(model, fmt, tmp_path):
    lone = said('assistant')
    twice = said('user', 'assistant', 'assistant')
    greeted = said('assistant', 'user', 'assistant')
    odd = [dict(messages=messages, split='valid') for messages in (lone, twice, greeted)]
    usual = [dict(r, split='train') for r in RECORDS]
    learn = sft(model, fmt, usual + odd, tmp_path, method='full', steps=2, evaluations=1, tokens=256)
    watch = learn.chat_watch
    assert [chat.messages for chat in watch.chats] == [twice, greeted]
    assert len(watch.looks[-1]['answers']) == 2
    assert 'red one\n\nred one' in watch.samples()


def test_a_look_answers_as_many_chats_as_were_asked_for(model, fmt):
    chats = [said('assistant'), *[said('user', 'assistant')] * 5]
    assert len(ChatWatch(fmt, chats, [], most=4).chats) == 4
    assert ChatWatch(fmt, chats, [], most=0).chats == []
    with pytest.raises(UserError, match='most'): ChatWatch(fmt, chats, [], most=-1)


def test_a_chat_of_tools_is_asked_with_its_tools(model, fmt, monkeypatch):
    seen = []
    def asked(self, messages, tools=None):
        seen.append(tools)
        return [5, 6]
    monkeypatch.setattr(ChatFormat, 'prompt_ids', asked)
    tools = [dict(type='function', function=dict(name='f'))]
    chat_answers(model, fmt, [Conversation(said('user'), tools=tools), said('user')], max_new_tokens=2)
    assert seen == [tools, None]


def test_a_small_validation_set_has_its_share(fmt):
    assert len(prepare_chats(RECORDS, fmt).chats['valid']) >= round(.1 * len(RECORDS))


@pytest.mark.parametrize('n', [2, 3, 10])
def test_few_chats_leave_no_split_empty(fmt, n):
    data = prepare_chats(RECORDS[:n], fmt)
    assert data.rows['train'] and data.rows['valid']


def test_named_splits_are_kept(fmt):
    records = [dict(r, split='valid' if i < 5 else 'train') for i, r in enumerate(RECORDS)]
    data = prepare_chats(records, fmt)
    assert {split: len(chats) for split, chats in data.chats.items()} == dict(train=len(RECORDS) - 5, valid=5)


# ---- training

@pytest.mark.parametrize('method', METHODS)
def test_every_method_learns_in_the_same_learner(tok, fmt, model, method):
    data = prepare_chats(RECORDS, fmt, 64)
    learn = chat_learner(set_method(model, method), data, fmt, lr=1e-2, tokens=256, device='cpu')
    learn.fit(3)
    nats = learn.chat_watch.table()['assistant nats']
    assert nats.iloc[-1] < nats.iloc[0] - .1
    assert set(show_groups(learn).state) == {'trained'}


@pytest.mark.parametrize('base', ['int8', 'nf4'])
def test_adapters_over_a_quantised_base(fmt, model, base):
    data = prepare_chats(RECORDS, fmt, 64)
    learn = chat_learner(set_method(model, 'lora', base), data, fmt, lr=1e-2, tokens=256, device='cpu')
    learn.fit(2)
    nats = learn.chat_watch.table()['assistant nats']
    assert nats.iloc[-1] < nats.iloc[0]


@pytest.mark.parametrize('method', ['full', 'lora'])
def test_a_wrapped_model(tok, fmt, method):
    data = prepare_chats(RECORDS, fmt, 64)
    model = set_method(neox(tok), method)
    learn = chat_learner(model, data, fmt, lr=1e-2, tokens=256, device='cpu', precision='float32')
    assert len(learn.dls.train.one_batch()) == 3  # packed
    learn.fit(2)
    nats = learn.chat_watch.table()['assistant nats']
    assert nats.iloc[-1] < nats.iloc[0]


def test_a_model_that_cannot_pack_says_so_and_trains(tok, fmt):
    transformers = import_transformers()
    set_seed(0)
    bloom = transformers.BloomForCausalLM(transformers.BloomConfig(vocab_size=tok.get_vocab_size(), hidden_size=32,
                                                                   n_layer=2, n_head=2))
    data = prepare_chats(RECORDS, fmt, 64)
    with pytest.warns(UserWarning, match='cannot keep several chats'):
        model = set_method(bloom, 'full')
        learn = chat_learner(model, data, fmt, lr=1e-2, tokens=256, device='cpu', precision='float32')
    assert len(learn.dls.train.one_batch()) == 2
    learn.fit(1)


class Stop(Exception): pass


class StopAt(Callback):
    order, run_valid = 90, False
    def __init__(self, step): self.step = step
    def after_batch(self):
        if self.learn.train_iter == self.step: raise Stop


def check_same_weights(one, other):
    found = dict(other.named_parameters())
    for name, p in one.named_parameters(): assert torch.equal(p, found[name]), name


@pytest.mark.parametrize('method, step', [('full', 5), ('full', 13), ('lora', 7), ('dora', 13), ('pissa', 6)])
def test_a_run_that_was_cut_ends_in_the_same_bits(tok, tmp_path, method, step):
    "accelerate#4071, ms-swift#10050: a resume in a later epoch repeats or skips data."
    options = dict(method=method, steps=16, lr=1e-2, tokens=128, device='cpu')
    whole_folder = tmp_path/'whole'
    cut_folder = tmp_path/'cut'
    whole = sft(small(tok), tok, RECORDS, whole_folder, **options)
    with pytest.raises(Stop): sft(small(tok), tok, RECORDS, cut_folder, cbs=[StopAt(step)], **options)
    resumed = sft(small(tok), tok, RECORDS, cut_folder, **options)
    check_same_weights(whole.model, resumed.model)
    assert whole.chat_watch.looks == resumed.chat_watch.looks
    looks = json.loads((cut_folder/'looks.json').read_text())
    steps = [look['step'] for look in looks]
    assert steps == [0, 4, 8, 12, 16]


# ---- looks

def test_roles_cost_what_the_whole_row_costs(fmt, model):
    rows = [fmt.encode([dict(role='user', content='say red'), dict(role='assistant', content='red!')])]
    table = role_loss(model, rows)
    x = torch.tensor(rows[0].ids[None].astype('int64'))
    nats = torch.nn.functional.cross_entropy(model.logits(model(x[:, :-1]))[0], x[0, 1:])
    assert (table.tokens * table.nats).sum() / table.tokens.sum() == pytest.approx(nats.item(), rel=1e-5)


def test_bits_of_a_text_by_hand(tok, model):
    text = 'say red 1 say blue 2'
    ids = torch.tensor([[0, *tok.encode(text).ids]])
    nats = torch.nn.functional.cross_entropy(model.logits(model(ids[:, :-1]))[0], ids[0, 1:], reduction='sum')
    assert text_bits(model, tok, [text]) == pytest.approx(nats.item() / 0.6931471805599453 / len(text), rel=1e-5)


def test_answers_of_a_batch_are_those_of_each_alone(fmt, model):
    "transformers#22707: batched answers differ from single ones."
    chats = [[dict(role='user', content='say ' * n + 'red')] for n in (1, 7, 3, 12)]
    together = chat_answers(model, fmt, chats, max_new_tokens=8)
    alone = [chat_answers(model, fmt, [chat], max_new_tokens=8)[0] for chat in chats]
    assert together == alone


def test_a_chat_too_long_for_the_context_keeps_its_last_question(fmt, model):
    turn = [dict(role='user', content='say ' * 15), dict(role='assistant', content='red ' * 10)]
    chat = [*turn, *turn, dict(role='user', content='say blue')]
    assert chat_answers(model, fmt, [chat], max_new_tokens=8) == chat_answers(model, fmt, [chat[4:]], max_new_tokens=8)


def test_what_never_ends_and_what_is_forgotten_is_said(fmt, model):
    watch = ChatWatch(fmt, [[dict(role='user', content='say red')]], [], keep=['say red'])
    watch.fitting = True
    watch.learn = type('Learn', (), dict(opt=None))()
    first = dict(step=0, nats={}, answers=['a'], stops=1., bits=2.)
    last = dict(step=9, nats={}, answers=['b'], stops=0., bits=3.)
    watch.looks = [first, last]
    with pytest.warns(UserWarning) as said: watch.after_fit()
    texts = [str(w.message) for w in said]
    assert any('none of 1 answers ended' in t for t in texts) and any('the model forgets' in t for t in texts)


# ---- what is written

def test_the_written_model_answers_as_the_trained_one(tok, fmt, tmp_path):
    learn = sft(small(tok), tok, RECORDS, tmp_path, method='full', steps=24, lr=1e-2, tokens=128, device='cpu')
    loaded, tok2 = load_pretrained(tmp_path/'model', device='cpu')
    chats = [[dict(role='user', content=f'say {w} 3')] for w in WORDS]
    assert chat_answers(loaded, ChatFormat(tok2), chats, 8) == chat_answers(learn.model.eval(), fmt, chats, 8)


@torch.no_grad()
def logits_of(model):
    "Return what a model says after each of 20 tokens."
    x = torch.arange(20)[None]
    hidden = model.eval()(x)
    return model.logits(hidden)


def test_an_adapter_is_opened_over_its_base(tok, fmt, tmp_path):
    options = dict(method='lora', steps=8, lr=1e-2, tokens=128, device='cpu', merge=True)
    learn = sft(small(tok), tok, RECORDS, tmp_path, **options)
    wanted = logits_of(learn.model)
    opened = load_adapters(small(tok), tmp_path/'adapter')
    merged, _ = load_pretrained(tmp_path/'model', device='cpu')
    for model in (opened, merged): torch.testing.assert_close(logits_of(model), wanted, atol=1e-5, rtol=1e-5)
    assert adapted_layers(learn.model)  # merging for the file left the trained model as it is


def test_another_run_in_the_same_folder_is_refused(tok, tmp_path):
    options = dict(source=RECORDS, out=tmp_path, method='lora', steps=4, lr=1e-2, tokens=128, device='cpu')
    sft(small(tok), tok, **options)
    with pytest.raises(Exception, match='differs in method'): sft(small(tok), tok, **(options | dict(method='rslora')))
    other = small(tok, n_head=4)
    with pytest.raises(Exception, match='differs in .*weights|differs in .*base'): sft(other, tok, **options)


def test_usual_rates(): assert usual_rate('lora') == 10 * usual_rate('full')


@pytest.mark.parametrize('options, message', [
    (dict(method='qlora'), 'method of full'), (dict(method='full', base='nf4'), 'with adapters only'),
    (dict(base='q4'), 'int8 or nf4'), (dict(steps=0), 'steps'), (dict(steps='x'), 'steps'),
    (dict(evaluations=0), 'evaluations'), (dict(lr=-1), 'lr'), (dict(tokens=0), 'tokens'),
    (dict(patience=1.5), 'patience'), (dict(data=dict(valid=2)), 'valid'),
    (dict(data=dict(train='none')), 'train'), (dict(data=dict(too_long='drop')), 'too_long'),
    (dict(source=[]), 'found none'), (dict(source='nothing.csv'), 'nothing.csv'),
    (dict(source=RECORDS[:1]), 'validate with'),
    (dict(adapter=dict(r=0)), 'r to be a whole number'), (dict(ratio=0), 'ratio'),
])
def test_bad_input_is_refused_in_words_before_work_starts(tok, tmp_path, options, message):
    call = dict(source=RECORDS, out=tmp_path/'run', method='lora', steps=4, device='cpu') | options
    with pytest.raises(UserError, match=message): sft(small(tok), tok, **call)
    assert not (tmp_path/'run'/'checkpoints').exists()


def test_plain_texts_are_tuned_on_and_nothing_is_answered(tok, fmt, tmp_path):
    texts = [dict(text=f'say {word} {i}') for word in WORDS for i in range(6)]
    learn = sft(small(tok), tok, texts, tmp_path, steps=4, lr=1e-2, tokens=128, device='cpu')
    table = learn.chat_watch.table()
    assert 'stops' not in table and len(table) == 5


def test_the_reason_is_named_when_nothing_can_be_used(fmt):
    with pytest.raises(UserError, match='1 nothing to train on'): prepare_chats([dict(prompt='a'), RECORDS[0]], fmt)


def test_few_chats_of_validation_are_worth_a_warning(fmt):
    with pytest.warns(UserWarning, match='are left to validate with'): prepare_chats(RECORDS[:12], fmt)


def test_numbers_of_a_table_are_answers(fmt):
    import pandas as pd
    table = pd.DataFrame(dict(question=[f'{i} and {i}?' for i in range(30)], answer=[2 * i for i in range(30)]))
    data = prepare_chats(table, fmt)
    assert not data.rejects
    answers = set()
    for part in data.chats.values(): answers |= {chat.messages[-1]['content'] for chat in part}
    assert answers == {str(2 * i) for i in range(30)}


def test_a_run_is_not_resumed_with_other_answers(tok, tmp_path):
    "Also where the changed chat is in none of the batches that a loader's fingerprint looks at, or in the validation."
    options = dict(out=tmp_path, method='lora', steps=4, lr=1e-2, tokens=64, device='cpu')
    sft(small(tok), tok, RECORDS, **options)
    for i in (5, 17, 30):
        changed = [dict(r, answer='four!') if k == i else r for k, r in enumerate(RECORDS)]
        with pytest.raises(Exception, match='differs in .*rows'): sft(small(tok), tok, changed, **options)


@pytest.mark.parametrize('kind', ('ours', 'wrapped'))
def test_weights_in_16_bits_are_trained_in_float32(tok, fmt, kind):
    "At this rate a norm of ones in bfloat16 would stay where it is."
    model = small(tok) if kind == 'ours' else as_lm(neox(tok))
    with pytest.warns(UserWarning, match='trained in float32'): model = set_method(model.to(torch.bfloat16), 'full')
    norms = {name: p.detach().clone() for name, p in model.named_parameters() if 'norm' in name and p.ndim == 1}
    learn = chat_learner(model, prepare_chats(RECORDS, fmt), fmt, lr=5e-5, tokens=256, device='cpu', steps=2)
    learn.fit(1)
    assert norms and {p.dtype for p in model.parameters()} == {torch.float32}
    moved = [name for name, p in model.named_parameters() if name in norms and not torch.equal(p, norms[name])]
    assert len(moved) == len(norms)


@pytest.mark.parametrize('method, base', (('lora', None), ('dora', 'nf4')))
def test_adapters_over_a_model_in_bfloat16(tok, fmt, method, base):
    model = set_method(small(tok).to(torch.bfloat16), method, base, r=4)
    data = prepare_chats(RECORDS, fmt)
    learn = chat_learner(model, data, fmt, lr=1e-2, tokens=256, device='cpu', precision='fp32', steps=8)
    first = learn.validate()[0]
    learn.fit(2)
    assert learn.validate()[0] < first


# ---- what it costs

PROGRAMS = Path(__file__).parent/'programs'


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux has /proc')
@pytest.mark.parametrize('method, base', [('full', 'none'), ('lora', 'none'), ('lora', 'nf4')])
def test_memory_of_tuning_is_within_a_quarter_of_what_was_predicted(method, base):
    config = json.dumps(dict(n_layer=6, d_model=384, n_head=6, context=512))
    command = [sys.executable, PROGRAMS/'tune_memory.py', config, '4', method, base]
    r = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | dict(OMP_NUM_THREADS='1'))
    assert r.returncode == 0, r.stderr[-2000:]
    measured, predicted = map(int, r.stdout.split())
    assert .8 < predicted / measured < 1.25, f'{predicted / 1e6:.0f} MB predicted, {measured / 1e6:.0f} measured'


def test_the_parts_of_a_cost_by_hand(tok):
    def cost(method, base=None):
        wide = small(tok, d_model=256)
        return tuning_cost(set_method(wide, method, base), tokens=256, targets=100)

    full, lora, nf4 = cost('full'), cost('lora'), cost('lora', 'nf4')
    assert full['gradients'] == 4 * full['trained'] and full['optimizer'] == 8 * full['trained']
    assert nf4['weights'] < lora['weights'] and nf4['trained'] == lora['trained'] < full['trained']
    assert 1 < full['flops'] / lora['flops'] < 1.5
    for c in (full, lora, nf4):
        parts = ('weights', 'gradients', 'optimizer', 'activations', 'loss', 'workspace')
        assert c['total'] == sum(c[part] for part in parts)
    assert tuning_cost(as_lm(neox(tok)), 256, 100) == dict(trained=sum(p.numel() for p in neox(tok).parameters()))


def test_a_run_says_what_it_should_take_and_what_it_took(tok, tmp_path, capsys):
    learn = sft(small(tok), tok, RECORDS, tmp_path, steps=6, evaluations=2, lr=1e-2, tokens=128, device='cpu')
    first, last = [line for line in capsys.readouterr().out.splitlines() if 'steps' in line]
    assert 'parameters train' in first and 'expected:' in first and 'for 6 steps' in first
    assert last.startswith('measured:') and 'for 6 steps' in last
    written = json.loads((tmp_path/'cost.json').read_text())
    assert written['expected']['trained'] == written['measured']['trained']
    assert written['measured']['steps'] == 6 and learn.run_cost.measured['seconds'] > 0


def test_nothing_is_predicted_for_a_wrapped_model(tok, fmt, capsys):
    data = prepare_chats(RECORDS, fmt)
    learn = chat_learner(set_method(neox(tok), 'lora', r=4), data, fmt, tokens=128, samples=0, device='cpu', cbs=RunCost())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert 'not predicted' in capsys.readouterr().out
