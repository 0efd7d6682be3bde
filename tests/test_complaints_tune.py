"""What users of other programs complained about in fine-tuning, and the test that holds the right behaviour.

A complaint is a thread: repository and number. What belongs to preferences, rewards and files for other engines stands
with those. A test that serves several complaints stands once, in the file of its subject; those that no other file
had a place for are here.
"""
import ast, gc
from pathlib import Path
import pytest, torch
from fastai.callback.core import Callback
from tokenizers import processors
from llmbook.core import import_transformers, set_seed
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.tune.chat import ChatFormat
from llmbook.tune.sft import chat_learner, prepare_chats
from test_chat import byte_level

HERE = Path(__file__).parent
COMPLAINTS = { # thread -> (what went wrong, the tests)
    'trl#3586': ('stock templates gave an empty mask', 'test_chat.test_the_mask_is_that_made_by_hand'),
    'marin#7237': ('the same in other programs', 'test_chat.test_stock_templates_train_on_answers_alone'),
    'trl#6668': ('truncation removed all targets', 'test_chat.test_in_is_rows_and_rejects'),
    'unsloth#2900': ('rows without targets trained on', 'test_sft.test_in_is_used_and_set_aside'),
    'trl#6320': ('a loss of 0.0 went unnoticed', 'test_pack.test_a_row_without_targets_changes_nothing'),
    'Soup#532': ('one row without targets made every weight NaN',
                 'test_pack.test_a_weighted_batch_without_targets_has_a_gradient_of_zero'),
    'trl#6105': ('the prompt was no beginning of the row',
                 'test_chat.test_the_prompt_is_always_the_beginning_of_the_row'),
    'trl#5213': ('tokens joined prompt and answer',
                 'test_chat.test_a_header_that_joins_the_answer_is_encoded_in_pieces'),
    'trl#4147': ('labels shifted without a generation prompt',
                 'test_chat.test_first_target_is_the_first_token_of_the_answer '
                 'test_chat.test_a_missing_generation_prompt_is_added'),
    'unsloth#416': ('padding was the end mark, so nothing stopped',
                    'test_chat.test_the_end_mark_is_a_target_also_where_it_fills_rows'),
    'trl#734': ('answers never ended, and nobody was told',
                'test_sft.test_what_never_ends_and_what_is_forgotten_is_said'),
    'OpenRLHF#393': ('two begin marks in training', 'test_chat.test_exactly_one_begin_mark'),
    'vllm#27486': ('two begin marks in the server', 'test_complaints_tune.test_a_server_reads_one_begin_mark'),
    'LlamaFactory#10827': ("an earlier turn's end mark was trained on",
                           'test_chat.test_targets_of_a_chat_of_three_turns'),
    'transformers#46634': ('packed chats saw one another', 'test_pack.test_packed_loss_is_that_of_the_chats_alone'),
    'axolotl#3796': ('the same', 'test_pack.test_a_changed_chat_changes_no_other'),
    'transformers#34191': ('accumulation was not the big batch',
                           'test_pack.test_accumulation_of_uneven_batches_is_the_big_batch'),
    'transformers#37766': ('the same', 'test_loss.test_the_gradient_of_unequal_micro_batches_is_that_of_the_big_batch'),
    'peft#2502': ('merged weights answered otherwise', 'test_adapters.test_merged_and_unmerged_are_exact'),
    'peft#1035': ('the same', 'test_sft.test_the_written_model_answers_as_the_trained_one'),
    'peft#2399': ('a tied head ignored its adapter', 'test_adapters.test_a_tied_head_is_refused_before_training'),
    'peft#2972': ('the same', 'test_adapters.test_adapters_on_some_layers_survive_the_file'),
    'transformers#31293': ('merged onto another base than trained on',
                           'test_adapters.test_both_merges_over_a_quantised_base_are_measured'),
    'peft#1932': ('missing keys of an adapter, and the base answered',
                  'test_adapters.test_broken_files_are_refused_in_words'),
    'peft#2118': ('an adapter over another base', 'test_adapters.test_over_another_base_it_is_refused'),
    'accelerate#4071': ('a resume in a later epoch repeated data',
                        'test_sft.test_a_run_that_was_cut_ends_in_the_same_bits'),
    'ms-swift#10050': ('the same', 'test_adapters.test_a_run_that_was_cut_resumes_bit_for_bit'),
    'verl#7401': ('a resume skipped data', 'test_pack.test_seeking_gives_the_batches_from_there'),
    'transformers#22707': ('answers of a batch differed from single ones',
                           'test_sft.test_answers_of_a_batch_are_those_of_each_alone'),
    'unsloth#9708': ('the same', 'test_generate.test_greedy_equals_the_definition_with_padding'),
    'transformers#8476': ('evaluation kept every logit',
                          'test_complaints_tune.test_a_validation_holds_as_much_for_any_set'),
    'transformers#15466': ('the same', 'test_interop.test_a_metric_that_would_hold_all_scores_is_refused'),
    'TGI#3247': ('servers did not read chat_template.jinja', 'test_chat.test_what_is_exported_is_read_by_both'),
    'axolotl#3093': ('the same', 'test_any_model.test_a_chat_template_is_kept_in_both_places'),
    'blurr#20': ('layer groups too coarse', 'test_groups.test_a_wrapped_model_has_a_group_for_each_block'),
    'blurr#23': ('a wrong freeze was accepted',
                 'test_groups.test_a_place_that_is_no_group_is_refused '
                 'test_groups.test_a_wrong_count_of_rates_is_refused'),
}


def functions(module):
    "Return the names of the test functions of a file."
    tree = ast.parse((HERE/f'{module}.py').read_text(encoding='utf-8'))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize('thread', COMPLAINTS)
def test_every_complaint_has_a_test(thread):
    _, tests = COMPLAINTS[thread]
    for name in tests.split():
        module, function = name.split('.')
        assert function in functions(module), f'{thread}: {module}.py has no {function}'


# ---- two that stand here ---------------------------------------------------------------------------------------------

def test_a_server_reads_one_begin_mark(tmp_path):
    "vllm#27486: the template wrote a begin mark, and the tokenizer that puts one before every text wrote another."
    tok = byte_level()
    begin = tok.token_to_id('<s>')
    tok.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', begin)])
    assert tok.encode('a').ids[0] == begin
    fmt = ChatFormat(tok, 'chatml')
    tok.save(str(tmp_path/'tokenizer.json'))
    fmt.save(tmp_path)
    messages = [dict(role='user', content='What is 2 + 2?')]
    server = import_transformers().AutoTokenizer.from_pretrained(tmp_path)
    ids = server.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(ids).count(begin) == 1
    assert list(ids) == fmt.prompt_ids(messages)


class LiveNumbers(Callback):
    "Notes how many numbers all tensors hold together after each batch of a validation."
    def before_validate(self): self.counts = []

    def after_batch(self):
        if self.training: return
        tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
        self.counts.append(sum(x.numel() for x in tensors))


def most_held(fmt, n_chats):
    "Return the most numbers that tensors hold in a validation of so many chats, and its batches."
    records = [dict(prompt=f'What is {i} + {i}?', answer=f'It is {2 * i}.') for i in range(2 * n_chats)]
    data = prepare_chats(records, fmt, seq_len=64, valid=.5)
    set_seed(0)
    model = Transformer(ModelConfig(vocab_size=fmt.tok.get_vocab_size(), n_layer=1, d_model=32, n_head=2, context=64))
    live = LiveNumbers()
    learn = chat_learner(model, data, fmt, tokens=256, samples=0, device='cpu', cbs=live)
    gc.collect()
    with learn.no_bar(), learn.no_logging(): learn.validate()
    return max(live.counts), len(live.counts)


def test_a_validation_holds_as_much_for_any_set():
    "transformers#8476, #15466: evaluation stored the logits of all batches and ran out of memory."
    fmt = ChatFormat(byte_level(), 'chatml')
    few, few_batches = most_held(fmt, 20)
    many, many_batches = most_held(fmt, 100)
    assert many_batches > 3 * few_batches
    assert many < 1.1 * few
