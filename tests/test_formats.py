"Formats: every shape from every source, bad input in one line, records in = used + set aside."
import gzip, json, os, warnings
from collections import Counter
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from llmbook.core import UserError
from llmbook.prepare.splits import split_of
from llmbook.tokens.loaders import IGNORE
from llmbook.tokens.tokenizer import decode, train_tokenizer
from llmbook.tune.chat import ChatFormat, Conversation, encode_chats
from llmbook.tune.formats import ChatData, conversation_of, iter_chats, load_chats
from llmbook.tune import replay
from llmbook.tune.pack import AnswerLoss, ChatLoader, chat_dls
from llmbook.tune.replay import mix_rows, replay_rows, with_replay
from llmbook.tune.sft import prepare_chats
from llmbook.tune.tasks import load_task_file, split_chats, task_dls
from llmbook.tune.pairs import Example

Q, A = '2 + 2?', '4'
CHAT = [dict(role='user', content=Q), dict(role='assistant', content=A)]
BRIEF = dict(role='system', content='Be brief.')
WORSE = [CHAT[0], dict(role='assistant', content='5')]
SHARE = [{'from': 'human', 'value': Q}, {'from': 'gpt', 'value': A}]

HH = f'\n\nHuman: {Q}\n\nAssistant: '

SHAPES = {
    'messages': (dict(messages=CHAT), 'messages', CHAT),
    'messages and system': (dict(messages=CHAT, system='Be brief.'), 'messages', [BRIEF, *CHAT]),
    'messages as JSON': (dict(messages=json.dumps(CHAT)), 'messages', CHAT),
    'empty keys of a table': (dict(messages=[dict(m, tool_calls=None, weight=None) for m in CHAT]), 'messages', CHAT),
    'conversations': (dict(conversations=CHAT), 'messages', CHAT),
    'sharegpt': (dict(conversations=SHARE, id='x'), 'sharegpt', CHAT),
    'sharegpt and system': (dict(conversations=SHARE, system='Be brief.'), 'sharegpt', [BRIEF, *CHAT]),
    'alpaca': (dict(instruction=Q, input='', output=A), 'alpaca', CHAT),
    'alpaca with an input': (
        dict(instruction='Add.', input=Q, output=A), 'alpaca', [dict(role='user', content=f'Add.\n\n{Q}'), CHAT[1]]),
    'alpaca with history': (
        dict(instruction=Q, output=A, history=[[Q, A]], system='Be brief.'), 'alpaca', [BRIEF, *CHAT, *CHAT]),
    'dolly': (dict(instruction=Q, context='', response=A, category='math'), 'alpaca', CHAT),
    'prompt and completion': (dict(prompt=Q, completion=A), 'pair', CHAT),
    'both lists of messages': (dict(prompt=[BRIEF, CHAT[0]], completion=[CHAT[1]]), 'pair', [BRIEF, *CHAT]),
    'question and answer': (dict(question=Q, answer=A), 'pair', CHAT),
    'any case': ({'Question ': Q, 'ANSWER': A}, 'pair', CHAT),
    'summary': (dict(dialogue=Q, summary=A, topic='x'), 'pair', CHAT),
    'prompt only': (dict(prompt=Q), 'prompt', CHAT[:1]),
    'prompt of messages': (dict(prompt=[BRIEF, CHAT[0]]), 'prompt', [BRIEF, CHAT[0]]),
    'text': (dict(text='Once.', label=1), 'text', []),
    'chosen and rejected': (dict(prompt=Q, chosen=A, rejected='5'), 'preference', CHAT),
    'chats chosen and rejected': (dict(chosen=CHAT, rejected=WORSE), 'preference', CHAT),
    'dialogues chosen and rejected': (dict(chosen=HH + A, rejected=HH + '5'), 'preference', CHAT),
    'orca': (dict(id='x', system_prompt='Be brief.', question=Q, response=A), 'pair', [BRIEF, *CHAT]),
    'a problem and its solution': (dict(problem=Q, solution=A, source='x'), 'pair', CHAT),
    'answers chosen and rejected': (dict(prompt=[CHAT[0]], chosen=CHAT[1:], rejected=WORSE[1:]), 'preference', CHAT),
    'an instruction, chosen and rejected': (
        dict(instruction=Q, input='', output=A, chosen=A, rejected='5'), 'preference', CHAT)}


@pytest.mark.parametrize('name', SHAPES)
def test_every_shape_is_found(name):
    record, shape, messages = SHAPES[name]
    chat, found, why = conversation_of(record)
    assert (found, why) == (shape, '')
    assert chat.messages == messages
    if shape == 'preference': assert chat.rejected == WORSE
    if shape == 'text': assert chat.text == 'Once.'


def test_tools_a_split_and_a_group_are_kept():
    tools = [dict(type='function', function=dict(name='f'))]
    chat, _, _ = conversation_of(dict(messages=CHAT, tools=json.dumps(tools), split='test', group=7))
    assert chat.tools == tools
    assert chat.split == 'test'
    assert chat.group == '7'


def test_more_than_messages_is_kept():
    labelled, _, _ = conversation_of(dict(prompt=Q, completion=A, label=False))
    assert labelled.label is False
    messages = [CHAT[0], dict(CHAT[1], weight=0)]
    weighted, _, _ = conversation_of(dict(messages=messages))
    assert weighted.messages == messages


WRONG = WORSE[-1]['content']
GOOD_LABELS = [True, 1, 1., 'True', ' true', '1']
BAD_LABELS = [False, 0, 0., 'False', 'FALSE', '0']


@pytest.mark.parametrize('labels, good', [(GOOD_LABELS, True), (BAD_LABELS, False)])
def test_a_label_beside_a_pair_is_read_however_it_is_written(labels, good):
    for label in labels:
        pair, _, _ = conversation_of(dict(prompt=Q, completion=A, label=label))
        named, _, _ = conversation_of(dict(chat=CHAT, ok=label), dict(messages='chat', label='ok'))
        assert pair.label is good
        assert named.label is good


@pytest.mark.parametrize('label', ['positive', 2, '', None, [True], float('nan')])
def test_what_is_no_label_is_refused_only_in_a_named_column(label):
    chat, _, why = conversation_of(dict(prompt=Q, completion=A, label=label))
    assert (chat.label, why) == (None, '')
    columns = dict(prompt='q', answer='a', label='ok')
    chat, _, why = conversation_of(dict(q=Q, a=A, ok=label), columns)
    assert chat is None
    assert why.startswith('label is not true, false, 1 or 0')


def test_bad_answers_of_tables_are_not_learned(fmt, tmp_path):
    path = tmp_path/'kto.csv'
    path.write_text(f'prompt,completion,label\n{Q},{A},True\n{Q},{WRONG},False\n')
    frame = pd.DataFrame(dict(prompt=[Q, Q], completion=[A, WRONG], label=[1, 0]))
    for source in (path, frame):
        rows, rejects = encode_chats(fmt, load_chats(source).chats)
        assert len(rows) == 1
        assert [r.reason for r in rejects] == ['its label is false: an answer not to learn']
    assert [e.answer for part in load_task_file(path).splits.values() for e in part] == [A]


BAD_RECORDS = {
    'a text': ('hello', 'not an object'),
    'a list': ([1], 'not an object'),
    'nothing': ({}, 'no prompt and answer'),
    'unknown names': (dict(sentence='a', label=1), 'its keys (sentence, label)'),
    'empty answer': (dict(prompt=Q, answer=' '), 'no text in answer'),
    'no answer': (dict(prompt=Q, answer=None), 'no text in answer'),
    'a number': (dict(prompt=Q, answer=4), 'no text in answer'),
    'empty prompt': (dict(prompt='', answer=A), 'no text in prompt'),
    'half a pair': (dict(prompt='\ud800', answer=A), 'not UTF-8'),
    'no messages': (dict(messages=[]), 'no list of messages'),
    'messages of text': (dict(messages=['a', 'b']), 'not a list of objects'),
    'messages as text': (dict(messages='a'), 'not a list of objects'),
    'no role': (dict(messages=[dict(content='a')]), 'message 0 has no role'),
    'no content': (dict(messages=[dict(role='user')]), 'no text in content'),
    'empty content': (dict(messages=[CHAT[0], dict(role='assistant', content='')]), 'no text in message 1 (assistant)'),
    'a picture': (dict(messages=[dict(role='user', content=[dict(type='image')])]), 'no text'),
    'weight in words': (dict(messages=[CHAT[0], dict(CHAT[1], weight='much')]), 'weight'),
    'history': (dict(instruction=Q, output=A, history='a'), 'history'),
    'the same twice': (dict(prompt=Q, chosen=A, rejected=A), 'are the same'),
    'two questions': (
        dict(chosen=CHAT, rejected=[dict(CHAT[0], content='a'), WORSE[1]]), 'different questions'),
    'no question': (dict(chosen=A, rejected='5'), 'no text in prompt'),
    'no last answer': (dict(chosen=CHAT[:1], rejected=CHAT), 'does not end with an answer'),
    'a tree': (dict(message_id='x', parent_id=None, role='prompter', text='Hi'), 'one message of a tree'),
    'tools': (dict(messages=CHAT, tools='none'), 'tools'),
    'split': (dict(prompt=Q, answer=A, split='dev'), 'split is not')}


@pytest.mark.parametrize('name', BAD_RECORDS)
def test_bad_records_are_refused_with_their_reason(name):
    record, reason = BAD_RECORDS[name]
    chat, shape, why = conversation_of(record)
    assert chat is None
    assert shape == ''
    assert reason in why


@pytest.mark.parametrize('name', BAD_RECORDS)
def test_bad_records_are_set_aside_with_their_reason(name):
    record, reason = BAD_RECORDS[name]
    good = [dict(messages=CHAT)] + [dict(prompt=Q, answer=A)] * 9
    data = load_chats([record, *good])
    assert len(data.chats) == 10
    assert data.total == 11
    reject, = data.rejects
    assert reject.id == 'record:1'
    _, _, why = conversation_of(record)
    assert reject.reason == why
    assert reason in why


# ---- sources ----

ROWS = [dict(frage=f'Was ist {i}; "{i}",\n{i}?', antwort=f'Es ist ä{i}.') for i in range(6)]
NAMED = dict(prompt='frage', answer='antwort')


def write_table(path, rows, kind):
    table = pd.DataFrame(rows)
    if kind == 'parquet': table.to_parquet(path)
    else: table.to_csv(path, index=False, sep='\t' if kind == 'tsv' else ',', lineterminator='\r\n')


def write_rows(path, rows):
    kind = path.name.removesuffix('.gz').rpartition('.')[2]
    plain = path.with_name('plain.' + kind)
    if kind == 'jsonl': plain.write_text('\n'.join(map(json.dumps, rows)))
    elif kind == 'json': plain.write_text(json.dumps(rows))
    else: write_table(plain, rows, kind)
    data = plain.read_bytes()
    plain.unlink()
    if path.suffix == '.gz': data = gzip.compress(data)
    path.write_bytes(data)


FILES = [f'a.{kind}{packed}' for kind in ('jsonl', 'json', 'csv', 'tsv', 'parquet') for packed in ('', '.gz')]


@pytest.mark.parametrize('name', FILES)
def test_every_file_gives_the_same_chats(name, tmp_path):
    write_rows(tmp_path/name, ROWS)
    data = load_chats(tmp_path/name, NAMED)
    assert data.chats[3].messages[0]['content'] == ROWS[3]['frage']
    assert data.chats[3].messages[1]['content'] == 'Es ist ä3.'
    assert (len(data), data.shapes) == (6, dict(pair=6))
    assert str(tmp_path/name) in repr(data)
    assert len(load_chats(str(tmp_path/name), NAMED, limit=4)) == 4


def sources():
    from datasets import Dataset
    frame = pd.DataFrame(ROWS)
    rows = Dataset.from_list(ROWS)
    columns = {name: list(frame[name]) for name in frame}
    return dict(list=ROWS, tuple=tuple(ROWS), generator=(row for row in ROWS), frame=frame, columns=columns,
                dataset=rows, stream=rows.to_iterable_dataset())


@pytest.mark.parametrize('name', ['list', 'tuple', 'generator', 'frame', 'columns', 'dataset', 'stream'])
def test_every_table_gives_the_same_chats(name):
    data = load_chats(sources()[name], NAMED)
    assert [c.messages[0]['content'] for c in data.chats] == [r['frage'] for r in ROWS]
    assert not data.rejects


def test_splits_of_a_data_set_are_kept():
    from datasets import Dataset, DatasetDict
    rows = Dataset.from_list(ROWS)
    for both in (DatasetDict(train=rows, validation=rows), dict(train=ROWS, dev=ROWS)):
        data = load_chats(both, NAMED)
        assert [c.split for c in data.chats] == ['train'] * 6 + ['valid'] * 6


def test_messages_come_through_pandas_and_parquet(tmp_path):
    rows = [dict(messages=CHAT), dict(messages=[BRIEF, *CHAT])]
    frame = pd.DataFrame(rows)
    frame.to_parquet(tmp_path/'a.parquet')
    for source in (frame, tmp_path/'a.parquet', pd.read_parquet(tmp_path/'a.parquet')):
        assert [chat.messages for chat in load_chats(source).chats] == [row['messages'] for row in rows]


def test_missing_cells_of_a_table_are_no_text():
    prompts = [Q, None, pd.NA, float('nan')]
    table = pd.DataFrame(dict(prompt=prompts, answer=[A] * 4), dtype=object)
    assert [r.reason for r in load_chats(table).rejects] == ['no text in prompt'] * 3


def test_a_stream_is_read_as_it_comes():
    read = []
    def rows():
        for i in range(10**9):
            read.append(i)
            yield dict(prompt=Q, answer=A)
    stream = iter_chats(rows())
    for _ in range(5): next(stream)
    assert len(read) <= 6
    assert len(load_chats(rows(), limit=20)) == 20


def load_written(path, content): return load_chats(write(path, content))


def test_other_forms_of_json_and_tables(tmp_path):
    line = json.dumps(dict(question=Q, answer=A))
    assert len(load_written(tmp_path/'lines.json', f'{line}\n{line}')) == 2
    assert len(load_written(tmp_path/'one.json', line)) == 1
    assert len(load_written(tmp_path/'inside.json', f'{{"version": 1, "data": [{line}, {line}]}}')) == 2
    chat = load_written(tmp_path/'chat.json', json.dumps(dict(messages=CHAT)))
    assert chat.chats[0].messages == CHAT


def test_places_and_beginnings_of_rejects(tmp_path):
    (tmp_path/'a.csv').write_bytes(b'question,answer\na,b\nc,\n\xff,d\n1,2,3\n"x\ny",e\nf,\n')
    with pytest.warns(UserWarning, match='4 of 6 records'): data = load_chats(tmp_path/'a.csv')
    assert [(r.id, r.reason) for r in data.rejects] == [
        ('a.csv:3', 'no text in answer'), ('a.csv:4', 'not UTF-8'), ('a.csv:5', 'more fields than the header names'),
        ('a.csv:8', 'no text in answer')]
    assert data.rejects[2].value.startswith('1, 2')
    assert '4 set aside (2 no text in answer, 1 not UTF-8' in repr(data)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


BAD_SOURCES = {
    'no file': (lambda d: d/'none.jsonl', None, 'expected a file (.jsonl'),
    'no file of this name': (lambda d: str(d/'none.csv'), None, 'expected a file (.jsonl'),
    'a folder': (lambda d: d, None, 'found another'),
    'a spreadsheet': (lambda d: write(d/'a.xlsx', b'PK'), None, 'found another'),
    'plain text': (lambda d: write(d/'a.txt', 'hello'), None, 'found another'),
    'an empty file': (lambda d: write(d/'a.jsonl', ''), None, 'it is empty'),
    'an empty table': (lambda d: write(d/'a.csv', ''), None, 'it is empty'),
    'only a header': (lambda d: write(d/'a.csv', 'prompt,answer\n'), None, 'it is empty'),
    'an empty list': (lambda d: [], None, 'it is empty'),
    'broken lines': (lambda d: write(d/'a.jsonl', '{"prompt": \n{'), None, '2 not JSON'),
    'broken JSON': (lambda d: write(d/'a.json', '[{"prompt": '), None, 'expected a list of objects'),
    'JSON of a number': (lambda d: write(d/'a.json', '3'), None, 'expected a list of objects'),
    'no parquet': (lambda d: write(d/'a.parquet', b'hello'), None, 'no parquet file, or damaged'),
    'half a parquet': (lambda d: write(d/'a.parquet', b'PAR1' + bytes(50)), None, 'no parquet file, or damaged'),
    'no gzip': (lambda d: write(d/'a.jsonl.gz', '{}'), None, 'is damaged'),
    'half a gzip': (lambda d: write(d/'a.jsonl.gz', gzip.compress(bytes(range(256)) * 99)[:40]), None, 'is damaged'),
    'UTF-16': (lambda d: write(d/'a.csv', 'prompt,answer\na,b\n'.encode('utf-16')), None, 'save it again as CSV UTF-8'),
    'Latin-1': (lambda d: write(d/'a.csv', 'prompt,answer\nä,ö\n'.encode('latin-1')), None, '1 not UTF-8'),
    'one name twice': (lambda d: write(d/'a.csv', 'prompt,prompt,answer\na,b,c\n'), None, 'rename one'),
    'other columns': (lambda d: write(d/'a.csv', 'frage,antwort\na,b\n'), None, 'name the columns'),
    'columns that are not there': (lambda d: write(d/'a.csv', 'frage,antwort\na,b\n'), dict(prompt='Frage'),
                                   'no column Frage (frage, antwort)'),
    'columns the wrong way round': (lambda d: ROWS, dict(frage='prompt'), 'names among prompt, input, answer'),
    'columns in a list': (lambda d: ROWS, ['frage', 'antwort'], 'expected columns as dict'),
    'no columns': (lambda d: ROWS, {}, 'expected columns as dict'),
    'only an answer': (lambda d: ROWS, dict(answer='antwort'), 'columns that name prompt'),
    'a chosen answer alone': (lambda d: ROWS, dict(prompt='frage', chosen='antwort', rejected='nichts'),
                              'no column nichts'),
    'a number': (lambda d: 7, None, 'expected a file, a list of records'),
    'nothing': (lambda d: None, None, 'expected a file, a list of records'),
    'bytes': (lambda d: b'{}', None, 'expected a file, a list of records'),
    'columns of two lengths': (lambda d: dict(prompt=['a'], answer=['b', 'c']), None, 'columns of one length'),
    'texts': (lambda d: ['a', 'b'], None, '2 not an object')}


@pytest.mark.parametrize('name', BAD_SOURCES)
def test_bad_sources_are_one_line_that_says_what_to_do(name, tmp_path):
    make, columns, message = BAD_SOURCES[name]
    source = make(tmp_path)
    with pytest.raises(UserError) as error: load_chats(source, columns)
    assert message in str(error.value)
    assert '\n' not in str(error.value)
    assert len(str(error.value)) < 600


HUB_ERRORS = {
    'no network': (ConnectionError("Couldn't reach 'a/b' on the Hub\nTraceback"), 'that can be reached'),
    'no such data set': (FileNotFoundError("Dataset 'a/b' doesn't exist"), "doesn't exist"),
    'no such split': (ValueError('Unknown split "trian"'), "with a split 'train'"),
    'no name': (ValueError("Repo id must use alphanumeric chars: 'a/b'"), 'alphanumeric')}


@pytest.mark.parametrize('name', HUB_ERRORS)
def test_what_the_hub_does_not_have_is_one_line(name, monkeypatch):
    import datasets
    error, message = HUB_ERRORS[name]
    def load_dataset(*args, **kwargs): raise error
    monkeypatch.setattr(datasets, 'load_dataset', load_dataset)
    with pytest.raises(UserError, match=message) as found: load_chats('a/b')
    assert '\n' not in str(found.value)


def test_a_data_set_of_the_hub_is_read_as_a_stream(monkeypatch):
    import datasets
    asked = []
    def load_dataset(name, **kwargs):
        asked.append((name, kwargs))
        return iter([dict(question=f'{i}?', answer='Yes.') for i in range(9)])
    monkeypatch.setattr(datasets, 'load_dataset', load_dataset)
    data = load_chats('a/b', split='validation', limit=4)
    assert asked == [('a/b', dict(split='validation', streaming=True))]
    assert [c.id for c in data.chats] == ['a/b:1', 'a/b:2', 'a/b:3', 'a/b:4']


def test_a_limit_is_a_number():
    with pytest.raises(UserError, match='limit'): load_chats(ROWS, NAMED, limit=0)


# ---- loaders ----

@pytest.fixture(scope='module')
def fmt():
    words = ['Was ist 1? Es ist 2. What is 2 + 2? It is 4.'] * 20
    return ChatFormat(train_tokenizer(words, 300, specials=['<|im_start|>', '<|im_end|>']), 'chatml')


def pair(question, answer):
    return Conversation([dict(role='user', content=question), dict(role='assistant', content=answer)])


def chats(n): return [pair(f'Was ist {i}?', f'Es ist {i}.') for i in range(n)]


def as_data(chats): return ChatData(chats, [], {})


FORMS = {
    'semicolons.csv': 'question;answer\n2 + 2?;4\n',
    'tabs.csv': 'question\tanswer\n2 + 2?\t4\n',
    'marked.csv': b'\xef\xbb\xbfquestion,answer\n2 + 2?,4\n',
    'marked.jsonl': b'\xef\xbb\xbf{"question": "2 + 2?", "answer": "4"}',
}


@pytest.mark.parametrize('name', FORMS)
def test_separators_and_marks_of_a_file_are_found(name, tmp_path):
    data = load_written(tmp_path/name, FORMS[name])
    assert data.chats[0].messages == CHAT


def test_a_cell_of_a_table_may_be_long(tmp_path):
    long = 'a' * 300_000
    data = load_written(tmp_path/'long.csv', f'question,answer\n{long},4\n')
    assert data.chats[0].messages[0]['content'] == long


def test_targets_are_answers_shifted_once(fmt):
    rows = prepare_chats(as_data(chats(40)), fmt, seq_len=64).rows
    dls = chat_dls(rows, fmt.tok, 256, 64, device='cpu', packed=False)
    seen = 0
    for x, y in dls.train:
        for inputs, targets in zip(x, y):
            learned = targets != IGNORE
            first = int(learned.nonzero()[0])
            answer = decode(fmt.tok, targets[learned], skip_special=False)
            before = decode(fmt.tok, inputs[:first + 1], skip_special=False)
            assert answer.startswith('Es ist ')
            assert answer.endswith('.<|im_end|>')
            assert before.endswith('<|im_start|>assistant\n')
            seen += 1
    assert seen + len(dls.valid.dataset) == 40


def small_model(fmt):
    from llmbook.model.config import ModelConfig
    from llmbook.model.transformer import Transformer
    torch.manual_seed(1)
    config = ModelConfig(vocab_size=fmt.tok.get_vocab_size(), n_layer=1, d_model=32, n_head=2, context=64)
    return Transformer(config)


def row_without_targets(fmt):
    question, answer = chats(1)[0].messages
    row = fmt.encode([question, dict(answer, weight=0)])
    assert row.n_targets == 0
    return row


def gradients(model, rows):
    "Return the loss of a batch of these rows, and the gradient of each parameter."
    model.zero_grad()
    x, y = ChatLoader(rows, bs=len(rows), shuffle=False, packed=False).one_batch()
    loss = AnswerLoss(model.head)(model(x), y)
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters()]


def test_a_row_without_targets_changes_no_weight(fmt):
    "Soup#532: one row without targets made every weight NaN: its gradient is zero, and the weights stay what they are."
    model = small_model(fmt)
    loss, grads = gradients(model, [row_without_targets(fmt)])
    assert loss == 0
    for grad in grads: assert (grad == 0).all()
    before = [p.detach().clone() for p in model.parameters()]
    torch.optim.SGD(model.parameters(), lr=1.).step()
    for old, p in zip(before, model.parameters()): assert torch.equal(old, p)


def test_a_row_without_targets_changes_no_gradient_of_others(fmt):
    model = small_model(fmt)
    rows, _ = encode_chats(fmt, chats(3))
    _, among = gradients(model, [*rows, row_without_targets(fmt)])
    _, without = gradients(model, rows)
    for grad, expected in zip(among, without):
        assert torch.isfinite(grad).all()
        assert torch.allclose(grad, expected, atol=1e-6)


def test_the_loader_shows_roles(fmt, capsys, monkeypatch):
    import IPython.display
    shown = []
    monkeypatch.setattr(IPython.display, 'display', shown.append)
    rows = prepare_chats(as_data(chats(20)), fmt, seq_len=64).rows
    chat_dls(rows, fmt.tok, 256, 64, device='cpu', packed=False).show_batch(max_n=2)
    assert len(shown) == 2
    for view in shown:
        assert 'trained on' in view._repr_html_()
        assert 'assistant* | Es ist' in repr(view)


def test_splits_have_their_shares():
    parts = split_chats(chats(400), valid=.1, test=.1)
    for split in ('valid', 'test'): assert 15 < len(parts[split]) < 70


def test_chats_with_one_question_stay_together():
    twice = split_chats(chats(50) + chats(50))
    for split in ('train', 'valid'): assert len(twice[split]) % 2 == 0


def test_chats_of_one_group_stay_together():
    grouped = [Conversation(chat.messages, group=str(i // 4)) for i, chat in enumerate(chats(200))]
    parts = split_chats(grouped, valid=.2)
    groups = {split: {chat.group for chat in part} for split, part in parts.items()}
    assert len(groups['train']) + len(groups['valid']) == 50
    assert not groups['train'] & groups['valid']


@pytest.mark.parametrize('n', [10, 24, 48, 90, 150])
@pytest.mark.parametrize('seed', range(5))
def test_a_small_split_has_at_least_its_share(n, seed):
    parts = split_chats(chats(n), seed, valid=.1, test=.1)
    for split in ('valid', 'test'): assert len(parts[split]) >= round(.1 * n)
    assert parts == split_chats(chats(n), seed, valid=.1, test=.1)


def test_something_is_left_to_train_on():
    for n in range(2, 12): assert split_chats(chats(n), valid=.95)['train']


def test_a_large_split_is_that_of_the_hash_alone():
    parts = split_chats(chats(400), valid=.1)
    questions = [chat.messages[0]['content'] for chat in parts['valid']]
    assert len(questions) >= 20
    assert all(split_of(question, 42, .1, 0) == 'valid' for question in questions)


@pytest.mark.parametrize('n', range(2, 12))
def test_few_chats_fill_both_splits(n): assert set(split_chats(chats(n))) == {'train', 'valid'}


def test_splits_that_records_name_get_no_others():
    named = [Conversation(c.messages, split='test') for c in chats(3)]
    assert split_chats(named + chats(90), test=.5)['test'] == named


def test_texts_do_not_go_all_together():
    parts = split_chats([Conversation([], text=f'Es ist {i}.') for i in range(50)])
    assert len(parts['train']) > 30
    assert parts['valid']


def test_in_is_rows_and_rejects_from_a_file_on(fmt, tmp_path):
    good = [dict(prompt=f'Was ist {i}?', answer=f'Es ist {i}.') for i in range(30)]
    bad = [
        dict(prompt='a', answer=None),
        dict(sentence='a'),
        dict(prompt='Was? ' * 200, answer='a'),
        dict(prompt='Was?'),
    ]
    write_rows(tmp_path/'a.jsonl', good + bad)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        data = prepare_chats(tmp_path/'a.jsonl', fmt, seq_len=64)
    assert sum(map(len, data.rows.values())) == 30
    assert data.total == 34
    assert sorted(r.reason for r in data.rejects) == [
        'longer than 64 tokens',
        'no prompt and answer among its keys (sentence)',
        'no text in answer',
        'nothing to train on',
    ]
    assert {r.id for r in data.rejects} == {f'a.jsonl:{i}' for i in range(31, 35)}


@pytest.fixture(scope='module')
def replayed(fmt):
    "Return rows of chats, and the rows of text that were added as a fifth of all positions."
    rows, _ = encode_chats(fmt, chats(300))
    both = with_replay(rows, TEXTS, fmt, share=.2, seq_len=32)
    assert both[:300] == rows
    return rows, both[300:]


def test_replay_is_a_share_of_all_positions(replayed):
    rows, text = replayed
    assert positions(text) / positions(rows + text) == pytest.approx(.2, abs=.005)


def test_replayed_windows_are_trained_on_whole_and_differ(replayed):
    _, text = replayed
    assert all(row.n_targets == 33 for row in text)
    different = {row.ids.tobytes() for row in text}
    assert len(different) > .9 * len(text)


def test_answers_that_are_labelled_bad_are_not_learned(fmt):
    records = [dict(prompt=Q, completion=A, label=good) for good in (True, False)]
    rows, rejects = encode_chats(fmt, load_chats(records).chats)
    assert len(rows) == 1
    assert [r.reason for r in rejects] == ['its label is false: an answer not to learn']


def test_plain_texts_are_trained_on_whole(fmt):
    texts = load_chats([dict(text='Es ist <|im_end|> 2.'), dict(text='Es ' * 200)])
    rows, rejects = encode_chats(fmt, texts.chats, seq_len=64)
    assert [r.reason for r in rejects] == ['longer than 64 tokens']
    assert rows[0].n_targets == len(rows[0])
    assert fmt.tok.token_to_id('<|im_end|>') not in rows[0].ids
    assert rows[0].ids[-1] == fmt.tok.token_to_id('<|endoftext|>')


# ---- mixtures and replay ----

def positions(rows): return sum(len(row) - 1 for row in rows)


@pytest.fixture(scope='module')
def kinds(fmt):
    "Return rows of two kinds, short ones and long ones."
    long_chats = [pair('Was? ' * 20, 'Es ist 2. ' * (1 + i % 7)) for i in range(25)]
    return dict(short=encode_chats(fmt, chats(60))[0], long=encode_chats(fmt, long_chats)[0])


def times(rows, mixed):
    "Return how often each row is in a mixture."
    found = Counter(map(id, mixed))
    return [found[id(row)] for row in rows]


WEIGHTS = [dict(short=1, long=1), dict(short=9, long=1), dict(short=1, long=9)]


@pytest.mark.parametrize('weights', WEIGHTS)
def test_mixtures_have_the_shares_that_were_asked_for(kinds, weights):
    mixed, table = mix_rows(kinds, weights, positions=9000, seed=3)
    counts = times(kinds['short'], mixed)
    drawn = sum(n * (len(row) - 1) for n, row in zip(counts, kinds['short']))
    wanted = weights['short'] / sum(weights.values())
    assert drawn / positions(mixed) == pytest.approx(wanted, abs=.02)
    assert positions(mixed) == pytest.approx(9000, rel=.02)
    assert [row['source'] for row in table] == ['short', 'long']


@pytest.mark.parametrize('weights', WEIGHTS)
def test_no_row_comes_again_before_all_have_come(kinds, weights):
    mixed, _ = mix_rows(kinds, weights, positions=9000, seed=3)
    counts = times(kinds['short'], mixed)
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize('weights', WEIGHTS)
def test_a_seed_gives_one_mixture(kinds, weights):
    mixed, _ = mix_rows(kinds, weights, positions=9000, seed=3)
    again, _ = mix_rows(kinds, weights, positions=9000, seed=3)
    assert list(map(id, mixed)) == list(map(id, again))


def test_a_mixture_without_weights_is_everything_once(kinds):
    whole, _ = mix_rows(kinds)
    assert sorted(map(id, whole)) == sorted(map(id, kinds['short'] + kinds['long']))


def test_mixtures_that_cannot_be_are_refused(kinds):
    short = kinds['short']
    with pytest.raises(UserError, match='3 times what'): mix_rows(dict(a=short), positions=1e6, epoch_cap=3)
    with pytest.raises(UserError, match='weights for a'): mix_rows(dict(a=short), dict(b=1))
    with pytest.raises(UserError, match='none in a'): mix_rows(dict(a=[]))
    with pytest.raises(UserError, match='positions'): mix_rows(dict(a=short), positions=-1)


TEXTS = [f'Es ist {i}. What is {i} + 2? ' * 9 for i in range(60)]


def test_replay_is_a_share_of_each_batch(fmt):
    rows, _ = encode_chats(fmt, chats(300))
    both = with_replay(rows, TEXTS, fmt, share=.2, seq_len=32)
    shares = []
    for x, _, y in ChatLoader(both, bs=16, seq_len=96, seed=1):
        learned = (y != IGNORE).float().mean().item()
        shares.append(learned)
    assert np.std(shares[:-1]) < .1, 'every batch has some of it'


@pytest.fixture
def prepared(fmt, monkeypatch):
    "Make any folder open as the prepared texts, with the tokenizer of the format; return their ids."
    ids = np.concatenate([fmt.encode_text(text).ids for text in TEXTS]).astype(np.uint16)
    monkeypatch.setattr(replay, 'open_prepared', lambda folder: (dict(eot=0), fmt.tok))
    monkeypatch.setattr(replay, 'open_tokens', lambda folder: ids)
    return ids


def test_replay_from_a_prepared_folder(fmt, tmp_path, prepared):
    windows = replay_rows(tmp_path, fmt, 320, seq_len=32)
    assert len(windows) == 10
    stored = prepared.astype(np.int32).tobytes()
    for row in windows: assert row.ids.tobytes() in stored


def test_a_prepared_folder_of_another_tokenizer_is_not_replayed(fmt, tmp_path, prepared, monkeypatch):
    other = train_tokenizer(['other words here'] * 20, 290)
    monkeypatch.setattr(replay, 'open_prepared', lambda folder: (dict(eot=0), other))
    with pytest.raises(UserError, match='prepare the text again'): replay_rows(tmp_path, fmt, 320)


def test_bad_replay_is_refused(fmt):
    rows, _ = encode_chats(fmt, chats(30))
    for share in (0, 1, 2, -1, 'x', None, float('nan')):
        with pytest.raises(UserError, match='share'): with_replay(rows, TEXTS, fmt, share=share)
    with pytest.raises(UserError, match='a smaller share'): with_replay(rows, TEXTS[:3], fmt, share=.9, seq_len=32)
    with pytest.raises(UserError, match='list of texts'): replay_rows('no folder', fmt, 100)
    with pytest.raises(UserError, match='to replay, got 0'): replay_rows([], fmt, 100)


# ---- task files ----

@pytest.mark.parametrize('n', range(3, 25))
def test_few_pairs_leave_no_split_empty(n, tmp_path):
    write_rows(tmp_path/'a.jsonl', [dict(prompt=f'q{i}', answer=f'a{i}') for i in range(n)])
    splits = load_task_file(tmp_path/'a.jsonl').splits
    assert all(splits.values())
    assert sum(map(len, splits.values())) == n


def answered(prompt, answer, split): return dict(prompt=prompt, answer=answer, split=split)


def test_a_prompt_that_comes_back_with_its_answer_is_not_mentioned(tmp_path):
    train = [answered(f'q{i}', 'a', 'train') for i in range(5)]
    valid = [answered(f'q{i}', 'a', 'valid') for i in range(5)]
    write_rows(tmp_path/'a.jsonl', [*train, *valid, answered('q', 'a', 'test')])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        load_task_file(tmp_path/'a.jsonl')
    assert not any('other answers' in str(warning.message) for warning in said)


def test_only_prompts_with_other_answers_are_mentioned(tmp_path):
    train = [answered(f'q{i}', 'a', 'train') for i in range(5)]
    valid = [answered(f'q{i}', 'a', 'valid') for i in range(5)]
    two_answers = [answered('r', 'a', 'train'), answered('r', 'b', 'valid')]
    write_rows(tmp_path/'a.jsonl', [*train, *valid, answered('q', 'a', 'test'), *two_answers])
    with pytest.warns(UserWarning, match='1 prompts of .* with other answers'): load_task_file(tmp_path/'a.jsonl')


def test_pairs_of_python_that_are_trained_on_and_validated_are_mentioned():
    tok = train_tokenizer(['a b c'] * 9, 300)
    pairs = [Example(f'a {i}', f'b {i}') for i in range(5)]
    with pytest.warns(UserWarning, match='3 of 3 pairs of valid are in train too'):
        task_dls(dict(train=pairs, valid=pairs[:3]), tok, bs=2, device='cpu')


def test_a_task_file_with_columns_of_its_own(tmp_path):
    write_rows(tmp_path/'a.csv', ROWS)
    task = load_task_file(tmp_path/'a.csv', columns=NAMED)
    assert sum(map(len, task.splits.values())) == len(ROWS)


DATA = Path(os.environ.get('LLMBOOK_DATA', 'nowhere'))


@pytest.mark.parametrize('name, shape, count', [
    ('raschka_instruction/instruction-data.json', 'alpaca', 1100),
    ('raschka_instruction/instruction-data-with-preference.json', 'preference', 1100),
    ('dialogsum/dialogsum.dev.jsonl', 'pair', 500), ('dialogsum/dialogsum.train.jsonl.gz', 'pair', 12460)])
def test_real_files(name, shape, count):
    if not (DATA/name).is_file(): pytest.skip('no real data at LLMBOOK_DATA')
    data = load_chats(DATA/name)
    assert data.total == count
    assert set(data.shapes) == {shape}
    assert len(data.rejects) < count / 100
