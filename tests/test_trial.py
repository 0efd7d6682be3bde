"Scorers of toxicity on trial: rows with their nulls, the audit, the error that is carried on, prompts, BOLD."
import numpy as np
import pytest
from llmbook.core import UserError
from llmbook.trial import rows


# ---- rows ----

ABOUT = rows.about_measure(0., 'lower', 'a share', 'anything else')


def test_lm_eval_760_every_measure_has_its_target():
    with pytest.raises(UserError, match='expected a target'): rows.about_measure(None, 'near target', 'a', 'b')
    crows = rows.about_measure(50., 'near target', 'per cent of pairs', 'use')
    r = rows.measured_row('stereotype_share', (62., 52., 72., 100), crows, rows.known_null(50., 'a coin'), 'x')
    assert r['target'] == 50 and r['better'] == 'near target'
    assert rows.measured_table([r])['best'].tolist() == ['50']


def test_helm_766_nothing_found_is_none_with_its_reason():
    empty = (None, None, None, 0)
    with pytest.raises(UserError, match='has no value'):
        rows.measured_row('lean', empty, ABOUT, rows.no_null('no text'), 'x')
    r = rows.measured_row('lean', empty, ABOUT, rows.no_null('no text'), 'x', reason='no identity word found')
    assert r['value'] is None and r['reason'] == 'no identity word found'
    assert 'no identity word found' in rows.measured_table([r]).to_string()


def test_a_row_without_limits_or_null_is_refused():
    with pytest.raises(UserError, match='shows_not'): rows.about_measure(0., 'lower', 'a share', '')
    with pytest.raises(UserError, match='better, read'):
        rows.measured_row('m', (1., 0., 2., 3), dict(target=0., shows_not='x'), rows.no_null('y'), 'x')
    with pytest.raises(UserError, match='expected a null'): rows.measured_row('m', (1., 0., 2., 3), ABOUT, {}, 'x')


def test_p_of_draws_counts_the_seen_one():
    assert rows.null_of_draws(5., np.zeros(19), 'zeros')['p'] == 1 / 20
    assert rows.null_of_draws(0., np.zeros(19), 'zeros')['p'] == 1
    two_sided = rows.null_of_draws(-2., [-1., 0., 1.], 'three')
    assert two_sided['p'] == 1 / 4
    assert rows.null_of_draws(-2., [-1., 0., 1.], 'three', above=True)['p'] == 1
