"A folder has one owner at a time, and a kill leaves no lock behind."
import json, os, subprocess, sys, threading, warnings
from types import SimpleNamespace
import pytest
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.checkpoint.retention import Kept
from llmbook.base.owner import NOTE, own_folder, owner
from llmbook.core import UserError
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.pretrain.run import pretrain
from llmbook.tokens.shards import read_manifest
from llmbook.tokens.tokenizer import train_tokenizer
from llmbook.tune.finetune import finetune
from llmbook.tune.pairs import Example
from llmbook.tune.sft import sft
from folders import contents
from run_program import PROGRAMS
from test_train import grammar_data, learner

def start(program, folder):
    "Start a program that takes a folder, and wait until it has it."
    command = [sys.executable, PROGRAMS/f'{program}.py', folder]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'mine\n'
    return process


@pytest.fixture
def other(tmp_path):
    "Return a process that holds a folder, once it does."
    process = start('hold_folder', tmp_path/'run')
    yield process
    process.kill()
    process.communicate()


def take(path):
    with own_folder(path, 'a second run'): pass


def test_a_second_process_is_refused_and_told_who_was_first(other, tmp_path):
    with pytest.raises(UserError, match=f'pre-training .* process {other.pid} on ') as e:
        take(tmp_path/'run')
    assert 'give another folder' in str(e.value)
    with pytest.raises(UserError): take(tmp_path/'x'/'..'/'run') # by another name


def test_a_killed_process_leaves_nothing_that_stands_in_the_way(other, tmp_path):
    other.kill()
    other.wait()
    assert owner(tmp_path/'run')['pid'] == other.pid
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        take(tmp_path/'run')
    assert not any((tmp_path/'run').iterdir())


def test_a_run_that_ended_leaves_the_folder_to_the_next(other, tmp_path):
    other.communicate('\n')
    take(tmp_path/'run')


def test_a_child_that_outlives_its_parent_does_not_hold_the_folder(tmp_path):
    "Workers are forked while the folder is held; the lock must not live on in them."
    process = start('hold_folder_in_child', tmp_path/'run')
    process.wait()
    take(tmp_path/'run') # while the child waits for its input
    process.stdin.close()
    process.stdout.read()


def test_a_thread_is_no_other_block_of_the_same_thread(tmp_path):
    errors = []
    def second():
        try: take(tmp_path)
        except UserError as e: errors.append(e)
    with own_folder(tmp_path):
        with own_folder(tmp_path): pass
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert (tmp_path/NOTE).exists() # the inner block has not given it back
    assert len(errors) == 1
    second()
    assert len(errors) == 1


def test_the_note_of_another_machine_is_worth_a_warning(tmp_path):
    note = dict(what='pre-training', host='elsewhere', pid=7, since='yesterday', command='llmbook-pretrain data')
    (tmp_path/NOTE).write_text(json.dumps(note))
    with pytest.warns(UserWarning, match='pre-training .* on elsewhere'): take(tmp_path)


@pytest.mark.parametrize('text', ['', '{', '[1]', '{"pid": {}}', '\x00'])
def test_a_damaged_note_stands_in_nobodys_way(tmp_path, text):
    (tmp_path/NOTE).write_text(text)
    take(tmp_path)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path/'run').touch()
    with pytest.raises(UserError, match='found a file'): take(tmp_path/'run')


def test_a_run_that_fails_at_once_leaves_no_empty_folder(tmp_path):
    with pytest.raises(KeyError), own_folder(tmp_path/'a'/'b'): raise KeyError
    assert not any(tmp_path.iterdir())
    with pytest.raises(KeyError), own_folder(tmp_path/'a'/'b'):
        (tmp_path/'a'/'b'/'history.csv').touch()
        raise KeyError
    assert os.listdir(tmp_path/'a'/'b') == ['history.csv']


# --- runs

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('owner')
    grammar_data(folder)
    return folder


def planned(data, steps=4, **options):
    "Return a plan of a few steps."
    vocab_size = read_manifest(data)['vocab_size']
    config = ModelConfig(vocab_size=vocab_size, n_layer=1, d_model=32, n_head=2, n_kv_head=1, context=32).to_dict()
    return SimpleNamespace(**dict(config=config, bs=4, seq_len=32, steps=steps, lr=1e-2, seed=7, machine={}) | options)


def test_a_second_pretraining_is_refused_and_changes_nothing(other, data, tmp_path):
    before = contents(tmp_path/'run')
    with pytest.raises(UserError, match=f'pre-training .* process {other.pid}'):
        pretrain(data, planned(data), tmp_path/'run', device='cpu')
    assert contents(tmp_path/'run') == before


def small_task():
    "Return a model, its tokenizer, and pairs of a question and an answer."
    texts = [f'say {word} {i}' for word in ('red', 'green', 'blue') for i in range(8)]
    tok = train_tokenizer(texts, 300)
    config = ModelConfig(vocab_size=tok.get_vocab_size(), n_layer=1, d_model=32, n_head=2, n_kv_head=1, context=32)
    return Transformer(config), tok, texts


def test_a_second_fine_tuning_is_refused_and_changes_nothing(other, tmp_path):
    model, tok, texts = small_task()
    pairs = [Example(text, text.split()[1]) for text in texts]
    before = contents(tmp_path/'run')
    with pytest.raises(UserError, match=f'process {other.pid}'):
        finetune(model, tok, dict(train=pairs[:16], valid=pairs[16:]), tmp_path/'run', steps=2, device='cpu')
    assert contents(tmp_path/'run') == before


def test_a_second_tuning_on_chats_is_refused_and_changes_nothing(other, tmp_path):
    model, tok, texts = small_task()
    records = [dict(prompt=text, answer=text.split()[1]) for text in texts]
    before = contents(tmp_path/'run')
    with pytest.raises(UserError, match=f'process {other.pid}'):
        sft(model, tok, records, tmp_path/'run', steps=2, device='cpu')
    assert contents(tmp_path/'run') == before


def test_a_second_fit_with_the_same_checkpoints_is_refused(other, data, tmp_path):
    learn = learner(data, steps=4, cbs=Checkpoint(tmp_path/'run'))
    with pytest.raises(UserError, match='nothing else writes to'), learn.no_bar(): learn.fit(1)
    assert learn.train_iter == 0


@pytest.mark.parametrize('change', [dict(seed=8), dict(lr=2e-2), dict(steps=6)])
def test_a_finished_run_is_not_mixed_with_another(data, tmp_path, change):
    pretrain(data, planned(data), tmp_path, evaluations=2, device='cpu')
    before = contents(tmp_path)
    with pytest.raises(UserError, match='belongs to another run'):
        pretrain(data, planned(data, **change), tmp_path, evaluations=2, device='cpu')
    assert contents(tmp_path) == before


def test_what_a_living_process_writes_is_not_tidied_away(other, tmp_path):
    names = {f'.step-000000004.{other.pid}.tmp': True, f'.step-000000004.{os.getpid()}.tmp': False,
             '.step-000000004.999999999.tmp': False, '.step-000000008.gone.tmp': False,
             '.step-000000004.save-1.tmp': False}
    for name in names: (tmp_path/name).mkdir()
    Kept(tmp_path).tidy()
    assert {name: (tmp_path/name).exists() for name in names} == names


def test_a_later_process_of_the_same_number_does_not_protect_it(other, tmp_path):
    half = tmp_path/f'.step-000000004.{other.pid}.tmp'
    half.mkdir()
    os.utime(half, (1e9, 1e9)) # long before that process began
    Kept(tmp_path).tidy()
    assert not half.exists()


def test_a_run_that_cannot_begin_leaves_no_folder(data, tmp_path):
    with pytest.raises(UserError):
        pretrain(data, planned(data, bs=10**6), tmp_path/'runs'/'x', device='cpu')
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('steps', [1, 5, 7])
def test_as_many_steps_are_made_as_planned(data, tmp_path, steps):
    assert pretrain(data, planned(data, steps=steps), tmp_path, device='cpu').train_iter == steps
