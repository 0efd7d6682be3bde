"Folders that left: what they hold, who opens them, what is refused, and how they are served and uploaded."
import copy, json, re, shutil, subprocess, sys
import pytest, torch
from foreign import quiet_transformers
from llmbook.core import UserError, set_seed
from llmbook.generate.text import generate, generate_ids
from llmbook.model.config import ModelConfig
from llmbook.model.hf import load_pretrained, save_pretrained
from llmbook.model.transformer import Transformer
from llmbook.report.example import example_run
from llmbook.ship.card import check_licence, earlier_card
from llmbook.ship.modelfile import modelfile, template_pieces
from llmbook.ship.push import push
from llmbook.ship.serve import INSTALL_SERVING, can_serve, serve
from llmbook.ship.ship import SUMS, check_sums, ship
from llmbook.ship.verify import Limits, exact_answers
from llmbook.tokens.tokenizer import encode_text, extend_tokenizer, train_tokenizer
from llmbook.tune.adapters import add_adapters, load_adapters
from llmbook.tune.chat import ChatFormat

TEXT = ['the cat sat on the mat in 1987, and it did not move until the dog came', "I'm 12; they've 3.5"] * 9
QUICK = dict(n_texts=300, n_tokens=6, engines=[])
QUESTION = [dict(role='user', content='the cat?')]


@pytest.fixture(scope='module')
def tok(): return train_tokenizer(TEXT, 320)

@pytest.fixture(scope='module')
def fmt(tok): return ChatFormat(tok)

@pytest.fixture(scope='module')
def chatml(tok): return ChatFormat(extend_tokenizer(tok, ['<|im_start|>', '<|im_end|>']), 'chatml')

@pytest.fixture(scope='module')
def tf(): return quiet_transformers()


def small(**options):
    set_seed(0)
    sizes = dict(vocab_size=330, n_layer=2, d_model=64, n_head=4, context=96)
    model = Transformer(ModelConfig(**{**sizes, **options})).eval()
    for p in model.parameters(): p.data *= 2 # so that the likeliest token stands out
    return model


@pytest.fixture(scope='module')
def shipped(tok, fmt, tmp_path_factory):
    "Return a chat model that was shipped, with the model."
    out = tmp_path_factory.mktemp('out')/'Cat'
    kinds = ['F16', 'Q8_0'] if has_gguf() else ()
    return ship(small(), out, fmt, gguf=kinds, licence='apache-2.0', data='Nine lines about a cat.', **QUICK)


def has_gguf():
    from importlib.util import find_spec
    return find_spec('gguf') is not None


# ---- what is there

def test_a_folder_holds_all_that_others_need(shipped):
    names = set(shipped.files())
    assert {'config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json',
            'chat_template.jinja', 'README.md', 'verification.json'} <= names
    if has_gguf(): assert {'cat-F16.gguf', 'cat-Q8_0.gguf', 'Modelfile'} <= names
    assert check_sums(shipped.folder) == len(names)
    assert not list(shipped.folder.parent.glob('*.part')) and not list(shipped.folder.parent.glob('*.old'))
    assert not shipped.table.failed
    assert 'REFUSED' not in repr(shipped)
    assert '<table' in shipped._repr_html_()


def test_ollama_6823_8363_template_and_stops_are_in_every_file(shipped, fmt):
    text = (shipped.folder/'Modelfile').read_text() if has_gguf() else modelfile('x.gguf', fmt.tok, fmt)
    assert 'TEMPLATE """' in text
    assert 'PARAMETER stop "<|endoftext|>"' in text
    assert '"<|prompt|>"' in text and '"<|answer|>"' in text
    if not has_gguf(): return
    from gguf import GGUFReader
    facts = GGUFReader(shipped.folder/'cat-F16.gguf').fields
    assert facts['tokenizer.chat_template'].contents() == fmt.template


def test_tgi_3247_axolotl_3093_the_template_stands_in_both_places(shipped, fmt, tf):
    config = json.loads((shipped.folder/'tokenizer_config.json').read_text())
    assert config['chat_template'] == (shipped.folder/'chat_template.jinja').read_text() == fmt.template
    theirs = tf.AutoTokenizer.from_pretrained(shipped.folder)
    text = theirs.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    assert text == fmt.render(QUESTION, prompt=True)


def test_openrlhf_393_vllm_27486_one_begin_mark(tf, tmp_path):
    from tokenizers import processors
    begun = extend_tokenizer(train_tokenizer(TEXT, 320), ['<s>', '<|im_start|>', '<|im_end|>'])
    begin = begun.token_to_id('<s>')
    begun.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', begin)])
    fmt = ChatFormat(begun, 'chatml')
    assert fmt.prompt_ids(QUESTION).count(begin) == 1
    found = ship(small(family='llama'), tmp_path/'m', fmt, gguf=['F16'] if has_gguf() else (), **QUICK)
    row, = [check for check in found.table.checks if check.what == 'begin marks in a chat']
    assert row.value == '1' and row.passed
    theirs = tf.AutoTokenizer.from_pretrained(tmp_path/'m')
    ids = theirs.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    assert list(ids) == fmt.prompt_ids(QUESTION)
    if has_gguf(): assert '"<s>' not in (tmp_path/'m'/'Modelfile').read_text() # the engine writes it


def test_a_modelfile_says_what_the_template_writes(fmt, chatml):
    chat = [dict(role='system', content='Be brief.'), dict(role='user', content='a'),
            dict(role='assistant', content='b'), dict(role='user', content='c')]
    for f in (fmt, chatml): assert template_pieces(f).render(chat) == f.render(chat, prompt=True)
    text = modelfile('m.gguf', chatml.tok, chatml, 96)
    assert 'PARAMETER stop "<|im_end|>"' in text and 'PARAMETER num_ctx 96' in text
    assert r'{{ "<|im_start|>user\n" }}' in text
    uneven = "{% for m in messages %}{{ loop.index0 }}{{ m['content'] }}<|endoftext|>{% endfor %}" \
             '{% if add_generation_prompt %}<|answer|>{% endif %}'
    with pytest.raises(UserError, match="template='chatml'"): modelfile('m.gguf', fmt.tok, ChatFormat(fmt.tok, uneven))


def test_generation_settings_are_kept(tok, tf, tmp_path):
    ship(small(), tmp_path/'m', tok, gguf=(), generation=dict(temperature=.6, top_p=.9, do_sample=True), **QUICK)
    found = tf.GenerationConfig.from_pretrained(tmp_path/'m')
    assert (found.temperature, found.top_p, found.do_sample, found.eos_token_id) == (.6, .9, True, 0)


def test_weights_in_sixteen_bits(tok, tmp_path):
    found = ship(small(), tmp_path/'m', tok, gguf=(), dtype='bfloat16', **QUICK)
    assert json.loads((tmp_path/'m'/'config.json').read_text())['torch_dtype'] == 'bfloat16'
    gap, = [check for check in found.table.checks if check.what.startswith('probabilities')]
    assert 0 < float(gap.value) < .05


# ---- adapters

def adapted(strength=.1, **options):
    "Return a model with adapters that change much: with .1 hidden states grow from 0.7 to 30."
    model = small(**options)
    add_adapters(model, r=4)
    for name, p in model.named_parameters():
        if 'lora_B' in name: p.data = torch.randn_like(p) * strength
    return model


def logits(model, x):
    with torch.no_grad(): return model.logits(model(x))


def exact_logits(model, x):
    "Return logits computed in float64: float32 rounds those of strong adapters by 2e-5, merged or not."
    return logits(copy.deepcopy(model).double(), x)


def test_an_adapter_leaves_merged_and_alone(tok, fmt, tmp_path):
    model = adapted()
    ship(model, tmp_path/'m', fmt, gguf=(), base_model='you/base', **QUICK)
    x = torch.arange(40).view(2, 20)
    merged, _ = load_pretrained(tmp_path/'m', 'cpu')
    assert (exact_logits(merged, x) - exact_logits(model, x)).abs().max() < 1e-5 # peft#2502
    assert model.adapters, 'the model that was shipped has lost its adapters'
    plain = small()
    load_adapters(plain, tmp_path/'m'/'adapter')
    assert (logits(plain, x) - logits(model, x)).abs().max() < 1e-6
    card = (tmp_path/'m'/'README.md').read_text()
    assert 'base_model: you/base' in card


def test_peft_opens_base_and_adapter(tok, tf, tmp_path):
    peft = pytest.importorskip('peft', reason='peft is not installed')
    save_pretrained(small(), tok, tmp_path/'base')
    model = adapted(strength=.02) # the norms of transformers are float32 whatever the rest is
    ship(model, tmp_path/'m', tok, gguf=(), **QUICK)
    base = tf.AutoModelForCausalLM.from_pretrained(tmp_path/'base')
    theirs = peft.PeftModel.from_pretrained(base, tmp_path/'m'/'adapter').eval()
    x = torch.arange(40).view(2, 20)
    with torch.no_grad(): found = theirs.double()(x).logits
    assert (found - exact_logits(model, x)).abs().max() < 1e-5
    assert (found - exact_logits(small(), x)).abs().max() > .01


def test_a_folder_and_an_adapter_are_merged(tok, tmp_path):
    save_pretrained(small(), tok, tmp_path/'base')
    model = adapted()
    ship(model, tmp_path/'first', tok, gguf=(), **QUICK)
    ship(tmp_path/'base', tmp_path/'second', adapter=tmp_path/'first'/'adapter', gguf=(), **QUICK)
    one, two = (load_pretrained(tmp_path/name, 'cpu')[0] for name in ('first', 'second'))
    for (name, p), q in zip(one.named_parameters(), two.parameters()): assert torch.equal(p, q), name


def test_peft_2399_2972_a_tied_head_is_merged_as_trained(tok, tmp_path):
    "An adapted embedding is the head too: equal after merging and reading back, or refused before training."
    model = small(tie_embeddings=True)
    try: add_adapters(model, targets='embed', r=4)
    except UserError: return # refused before training
    for name, p in model.named_parameters():
        if 'lora_B' in name: p.data = torch.randn_like(p) * .1
    ship(model, tmp_path/'m', tok, gguf=(), **QUICK)
    x = torch.arange(40).view(2, 20)
    merged, _ = load_pretrained(tmp_path/'m', 'cpu')
    assert (logits(merged, x) - logits(model, x)).abs().max() < 1e-5


def test_transformers_31293_a_quantised_base_is_merged_as_trained(tok, tmp_path):
    "The merged model is the one that was trained, over the rounded weights; merged onto the plain ones, it is another."
    from llmbook.tune.adapters import merge_gap
    from llmbook.tune.quantised import quantise_base
    plain = small()
    model = small()
    quantise_base(model, 'int8')
    add_adapters(model, r=4)
    for name, p in model.named_parameters():
        if 'lora_B' in name: p.data = torch.randn_like(p) * .1
    x = torch.arange(40).view(2, 20)
    ship(model, tmp_path/'m', tok, gguf=(), **QUICK)
    merged, _ = load_pretrained(tmp_path/'m', 'cpu')
    own = (exact_logits(merged, x) - exact_logits(model, x)).abs().max()
    gaps = merge_gap(model, x, plain)
    assert own < 1e-5
    assert gaps['other base']['largest'] > 10 * own


# ---- opened elsewhere

def test_a_pipeline_answers(shipped, fmt, tf):
    ask = tf.pipeline('text-generation', str(shipped.folder), device='cpu')
    answer = ask(QUESTION, max_new_tokens=6, do_sample=False)[0]['generated_text'][-1]
    assert answer['role'] == 'assistant'
    model, _ = load_pretrained(shipped.folder, 'cpu')
    ids, = generate_ids(model, [fmt.prompt_ids(QUESTION)], 6, temperature=0, stop=list(fmt.stop_ids))
    assert answer['content'].strip() == fmt.tok.decode(ids, skip_special_tokens=False).strip() or \
           answer['content'].strip() == fmt.read_answer(ids)


# a torchvision for another torch stops `transformers`: `make` replaces it or takes it out, and so does this line
AS_MAKE_BUILDS = 'from llmbook.core import import_transformers; import_transformers()\n'

def python_lines(card): return re.findall(r'```python\n(.*?)```', card, re.DOTALL)

def test_the_lines_of_the_card_run_as_they_stand(shipped, tok, tmp_path):
    plain = ship(small(), tmp_path/'plain', tok, gguf=(), **QUICK)
    for folder in (shipped.folder, plain.folder):
        blocks = python_lines((folder/'README.md').read_text())
        assert len(blocks) == 2
        program = AS_MAKE_BUILDS + '\n'.join(blocks)
        done = subprocess.run([sys.executable, '-c', program], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]


def test_lm_eval_scores_the_folder(shipped, tok):
    pytest.importorskip('lm_eval', reason='lm-eval is not installed')
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    lm = HFLM(pretrained=str(shipped.folder), device='cpu', batch_size=1)
    asked = Instance(request_type='loglikelihood', doc={}, arguments=('the cat', ' sat on the mat'), idx=0)
    (found, _), = lm.loglikelihood([asked])
    model, _ = load_pretrained(shipped.folder, 'cpu')
    context, whole = encode_text(tok, ['the cat', 'the cat sat on the mat'])
    log_p = logits(model, torch.tensor([whole]))[0].log_softmax(-1)
    ours = sum(log_p[i - 1, whole[i]].item() for i in range(len(context), len(whole)))
    assert abs(found - ours) < 1e-3


def test_a_client_of_openai_is_answered(shipped, fmt):
    if not can_serve(): pytest.skip(f'the packages of transformers serve are not installed: {INSTALL_SERVING}')
    model, _ = load_pretrained(shipped.folder, 'cpu')
    ids, = generate_ids(model, [fmt.prompt_ids(QUESTION)], 6, temperature=0, stop=list(fmt.stop_ids))
    with serve(shipped.folder, port=0, seconds=240) as server:
        client = server.client()
        options = dict(model=server.model, messages=QUESTION, max_tokens=6, temperature=0)
        whole = client.chat.completions.create(**options)
        parts = client.chat.completions.create(**options, stream=True)
        streamed = ''.join(part.choices[0].delta.content or '' for part in parts)
        process = server.process
    assert whole.usage.prompt_tokens == len(fmt.prompt_ids(QUESTION)) # one begin mark, and no more
    assert whole.choices[0].message.content == streamed
    assert 'the cat?' not in streamed, 'the server hands out the question with the answer'
    assert streamed.strip() in (fmt.read_answer(ids), fmt.tok.decode(ids, skip_special_tokens=False).strip())
    assert process.poll() is not None


# ---- the card

def test_a_card_tells_a_stranger_what_the_run_knows(tok, tmp_path):
    from huggingface_hub import ModelCard
    run = example_run(tmp_path/'run')
    save_pretrained(small(), tok, run/'model')
    ship(run, tmp_path/'m', gguf=(), licence='cc-by-4.0', cost=dict(price=.1, watts=65.), **QUICK)
    card = ModelCard((tmp_path/'m'/'README.md').read_text())
    assert card.data.license == 'cc-by-4.0'
    assert card.data.pipeline_tag == 'text-generation' and 'llmbook' in card.data.tags
    assert {'perplexity', 'bits_per_byte', 'toxicity_probability'} <= {r.metric_name for r in card.data.eval_results}
    titles = re.findall('^## (.*)$', card.text, re.MULTILINE)
    assert titles == ['Use', 'Data', 'Training', 'Evaluation', 'Limits', 'Cost', 'Verified', 'Licence']
    for text in ('kWh', '65 W', '95 % interval', 'toxicity', 'passed', 'cc-by-4.0'): assert text in card.text


def test_a_card_without_a_run_says_what_is_unknown(tok, tmp_path):
    ship(small(), tmp_path/'m', tok, gguf=(), **QUICK)
    card = (tmp_path/'m'/'README.md').read_text()
    for text in ('not documented', 'Nothing is known of its toxicity', 'No licence is stated'): assert text in card


def test_what_a_stranger_writes_is_no_markup(tok, tmp_path):
    ship(small(), tmp_path/'m', tok, gguf=(), name='<b>x</b>', data='[click](http://x) <script>', **QUICK)
    card = (tmp_path/'m'/'README.md').read_text()
    assert '<script>' not in card and '<b>' not in card and '[click](' not in card


def test_the_licence_of_an_earlier_card_goes_on(tok, tmp_path):
    from huggingface_hub import ModelCard
    save_pretrained(small(), tok, tmp_path/'theirs')
    card = '---\nlicense: mit\nlanguage: [de]\n---\n\n# Theirs\n\n## Data\n\nunsaid'
    (tmp_path/'theirs'/'README.md').write_text(card)
    ship(tmp_path/'theirs', tmp_path/'m', gguf=(), **QUICK)
    data = ModelCard((tmp_path/'m'/'README.md').read_text()).data
    assert data.license == 'mit' and data.language == ['de']
    (tmp_path/'theirs'/'README.md').write_text('---\nlicense: [mit\n---\n')
    assert earlier_card(tmp_path/'theirs') == ({}, {})


# ---- the score of a task

def test_a_score_is_taken_before_and_after(tok, tmp_path):
    model = small()
    right, = generate(model, tok, ['the cat'], max_new_tokens=6, temperature=0)
    pairs = [('the cat', right.strip()), ('the mat', 'never this')]
    found = ship(model, tmp_path/'m', tok, gguf=(), score=exact_answers(pairs, n=6), **QUICK)
    scores = [check.value for check in found.table.checks if check.what == 'score of the task']
    assert [float(score) for score in scores] == [.5, .5]
    falling = iter([.9, .5])
    with pytest.raises(UserError, match='score of the task, transformers: 0.5.*, expected 0.88 or more'):
        ship(model, tmp_path/'n', tok, gguf=(), score=lambda *_: next(falling), **QUICK)
    assert not (tmp_path/'n').exists() and (tmp_path/'n.part'/'verification.json').is_file()


# ---- what is refused

@pytest.mark.parametrize('options, says', [
    (dict(out=5), 'out'),
    (dict(tok=None), 'give tok'),
    (dict(gguf=['Q4_K_M']), 'llama-quantize'),
    (dict(gguf='GGUF'), 'expected a kind'),
    (dict(dtype='int8'), 'dtype'),
    (dict(licence='do what you like'), 'short name of a licence'),
    (dict(generation=dict(temprature=1)), 'temprature'),
    (dict(generation=dict(eos_token_id=5)), 'eos_token_id'),
    (dict(generation=dict(temperature=-1.)), 'transformers takes'),
    (dict(adapter='none'), 'adapter_config.json'),
    (dict(run='none'), "run's folder"),
    (dict(n_texts=-1), 'n_texts'),
    (dict(n_texts='many'), 'n_texts'),
    (dict(n_tokens=0), 'n_tokens'),
    (dict(cost=dict(watts=-5.), run='RUN'), 'watts'),
    (dict(cost=dict(grid='moon'), run='RUN'), 'moon'),
    (dict(prompts=[]), 'prompts'),
    (dict(name='x\ny'), 'name'),
])
def test_bad_input_is_refused_and_nothing_is_called_done(options, says, tok, tmp_path):
    if options.get('run') == 'RUN': options = dict(options, run=example_run(tmp_path/'run'))
    given = dict(out=tmp_path/'m', tok=tok, gguf=()) | QUICK | options
    with pytest.raises(UserError, match=says): ship(small(), given.pop('out'), **given)
    assert not (tmp_path/'m').exists()


def test_nothing_else_is_written_over(tok, tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.txt').write_text('...')
    with pytest.raises(UserError, match='other files'): ship(small(), tmp_path/'mine', tok, gguf=(), **QUICK)
    file = tmp_path/'mine'/'thesis.txt'
    with pytest.raises(UserError, match='found a file'): ship(small(), file, tok, gguf=(), **QUICK)
    save_pretrained(small(), tok, tmp_path/'model')
    with pytest.raises(UserError, match='another folder than that of the model'):
        ship(tmp_path/'model', tmp_path/'model', gguf=(), **QUICK)


def test_a_folder_is_replaced_when_the_new_one_is_whole(tok, tmp_path):
    ship(small(), tmp_path/'m', tok, gguf=(), **QUICK)
    before = (tmp_path/'m'/SUMS).read_text()
    other = small(n_layer=1)
    broken = copy.deepcopy(other)
    broken.blocks[0].mlp.up_proj.weight.data[0, 0] = float('nan')
    with pytest.raises(UserError, match='NaN'): ship(broken, tmp_path/'m', tok, gguf=(), **QUICK)
    with pytest.raises(UserError, match='do not use'):
        ship(other, tmp_path/'m', tok, gguf=(), limits=Limits(logits=0.), **QUICK)
    assert (tmp_path/'m'/SUMS).read_text() == before and check_sums(tmp_path/'m')
    ship(other, tmp_path/'m', tok, gguf=(), **QUICK)
    assert (tmp_path/'m'/SUMS).read_text() != before and check_sums(tmp_path/'m')


def test_damage_on_the_way_is_found(shipped, tmp_path):
    folder = tmp_path/'copy'
    shutil.copytree(shipped.folder, folder)
    weights = folder/'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-1] + b'x')
    (folder/'README.md').unlink()
    (folder/'more.txt').write_text('x')
    with pytest.raises(UserError) as e: check_sums(folder)
    found = str(e.value)
    for text in ('README.md is missing', 'more.txt was added', 'model.safetensors was changed'): assert text in found


@pytest.mark.parametrize('licence', ['', 'GPL v3', 5, None, 'x' * 99])
def test_what_is_no_licence_is_refused(licence):
    with pytest.raises(UserError, match='licence'): check_licence(licence)


# ---- serving and uploading

@pytest.mark.parametrize('model, options, says', [
    ('./none', {}, 'found none'), ('x.gguf', {}, 'llama-server'), ('./none', dict(port='x'), 'port'),
    ('./none', dict(seconds=0), 'seconds'), ('./none', dict(host=5), 'host')])
def test_a_server_of_nothing_is_refused(model, options, says):
    with pytest.raises(UserError, match=says): serve(model, **options)


def test_a_server_of_an_adapter_is_refused(tmp_path):
    (tmp_path/'adapter_config.json').write_text('{}')
    with pytest.raises(UserError, match='merge it with ship'): serve(tmp_path)


class Hub:
    "Stands in for the hub's client, and remembers what it was asked."
    def __init__(self, error=None): self.asked, self.error = [], error
    def create_repo(self, repo, **options):
        if self.error: raise self.error
        self.asked.append((repo, options))
        return repo
    def upload_folder(self, **options):
        self.asked.append(options)
        return 'https://hub/commit'


def test_a_model_is_uploaded_with_the_client_of_the_hub(shipped):
    hub = Hub()
    assert push(shipped.folder, 'you/cat', api=hub) == 'https://hub/commit'
    created, uploaded = hub.asked
    assert created == ('you/cat', dict(private=True, exist_ok=True, repo_type='model'))
    assert uploaded['folder_path'] == str(shipped.folder) and uploaded['repo_id'] == 'you/cat'


def refusal(status):
    "Return the error with which the hub's client answers a status."
    import httpx
    from huggingface_hub.errors import HfHubHTTPError
    response = httpx.Response(status, request=httpx.Request('POST', 'https://hub'))
    return HfHubHTTPError(f'{status} refused', response=response)


@pytest.mark.parametrize('make, says', [
    (lambda: refusal(401), 'hf auth login'), (lambda: refusal(403), 'may not write there'),
    (lambda: refusal(500), 'the hub refused'), (lambda: OSError('no route'), 'check the network')])
def test_the_hub_says_no(make, says, shipped):
    with pytest.raises(UserError, match=says): push(shipped.folder, 'you/cat', api=Hub(make()))


def test_off_line_it_says_so(shipped):
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled
    with pytest.raises(UserError, match='not uploaded'):
        push(shipped.folder, 'you/cat', api=HfApi(endpoint='http://127.0.0.1:9', token=False))
    with pytest.raises(UserError, match='unset HF_HUB_OFFLINE'):
        push(shipped.folder, 'you/cat', api=Hub(OfflineModeIsEnabled('off')))


@pytest.mark.parametrize('repo', ['', 'a/b/c', '../x', 'a b', 'x' * 200, 5])
def test_a_repository_needs_a_name(repo, shipped):
    hub = Hub()
    with pytest.raises(UserError): push(shipped.folder, repo, api=hub)
    assert not hub.asked


def test_a_folder_that_was_not_shipped_is_not_uploaded(tok, tmp_path):
    save_pretrained(small(), tok, tmp_path)
    hub = Hub()
    with pytest.raises(UserError, match='made by ship'): push(tmp_path, 'you/cat', api=hub)
    assert not hub.asked
