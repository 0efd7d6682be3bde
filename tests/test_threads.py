"Threads that wait by spinning or sleeping, whichever the machine has room for; what a user has set stays."
import os, subprocess, sys
import pytest, torch
from llmbook.base import threads
from llmbook.base.threads import SleepingTeam, set_up_threads, share_cores, stop_sharing
from llmbook.plan.record import Plan
from llmbook.model.config import get_config


@pytest.fixture
def machine(monkeypatch):
    "Make a machine with two cores and two threads, whose other programs use `machine['others']` cores."
    state = dict(others=0.)
    class Meter:
        def read(self): return state['others']
    monkeypatch.setattr(threads, 'CoreMeter', Meter)
    monkeypatch.setattr(threads, 'can_share', lambda: True)
    monkeypatch.setattr(threads, 'allowed_cores', lambda: 2)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 2)
    monkeypatch.setattr(threads, '_sharing', threads._Sharing())
    yield state
    stop_sharing()


def sleeps(): return threads._sharing.team is not None


def test_threads_sleep_beside_others_and_spin_alone(machine):
    seen = []
    for others in (0., 0., 1., .15, .05, .15, 1.):  # .15 lies between the two limits: nothing changes
        machine['others'] = others
        share_cores(now=True)
        seen.append(sleeps())
    assert seen == [False, False, True, True, False, False, True]


def test_cores_that_are_free_may_be_used_by_others(machine, monkeypatch):
    monkeypatch.setattr(threads, 'allowed_cores', lambda: 4)
    machine['others'] = 2.
    for _ in range(2): share_cores(now=True)
    assert not sleeps()


def test_nobody_looks_twice_within_half_a_second(machine):
    share_cores(now=True)
    machine['others'] = 1.
    assert share_cores() is None
    assert not sleeps()


def test_a_chosen_way_of_waiting_stays(monkeypatch):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 2)
    monkeypatch.setattr(threads, '_has_gnu_openmp', lambda: True)
    for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'): monkeypatch.delenv(name, raising=False)
    assert threads.can_share()
    monkeypatch.setenv('GOMP_SPINCOUNT', '5')
    assert not threads.can_share()
    monkeypatch.delenv('GOMP_SPINCOUNT')
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 1)
    assert not threads.can_share()


def test_sleeping_changes_no_bit():
    torch.manual_seed(0)
    a = torch.randn(300, 400)
    b = torch.randn(400, 500)
    def computed(): return a @ b, torch.nn.functional.layer_norm(a, (400,)), a.sum()
    before = computed()
    team = SleepingTeam()
    beside = computed()
    team.end()
    assert all(map(torch.equal, before, beside))
    assert not any(thread.is_alive() for thread in team.threads)


def test_a_quota_limits_the_threads(monkeypatch):
    monkeypatch.setattr(threads, 'allowed_cores', lambda: 64)
    monkeypatch.setattr(threads, 'core_quota', lambda: 1.5)
    assert set_up_threads({})['OMP_NUM_THREADS'] == '2'
    for name in threads.THREAD_VARIABLES:
        assert 'OMP_NUM_THREADS' not in set_up_threads({name: '3'})


def test_importing_the_package_sets_threads_up_and_loads_no_torch():
    program = 'import os, sys, llmbook; print(os.environ.get("KMP_BLOCKTIME"), "torch" in sys.modules)'
    env = {name: value for name, value in os.environ.items() if name not in threads.WAIT_VARIABLES}
    said = subprocess.run([sys.executable, '-c', program], env=env, capture_output=True, text=True, check=True).stdout
    assert said.split() == ['1', 'False']


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork on this system')
def test_no_sleeping_thread_is_lost_in_a_fork(machine):
    machine['others'] = 1.
    for _ in range(2): share_cores(now=True)
    assert sleeps()
    child = os.fork()
    if child == 0: os._exit(sleeps())
    assert os.waitpid(child, 0)[1] == 0
    assert not sleeps()


def plan(tokens_per_param, others):
    "Return a plan with the figures that its notes depend on."
    expected = dict(body=1000)
    steps = max(1, round(tokens_per_param * 1000 / 8))
    machine = dict(cores=2, others=others)
    config = get_config('pico').to_dict()
    return Plan(1, 0, machine, 'pico', config, 2, 4, steps, 8 * steps, .1, expected)


def test_a_plan_says_when_the_machine_was_busy_or_the_budget_is_tiny():
    assert plan(8, 0).notes() == []
    busy, = plan(8, 1.2).notes()
    assert 'other programs used 1.2 of 2 cores' in busy
    tiny, = plan(.2, 0.).notes()
    assert '0.2 tokens a parameter' in tiny
    assert 'smaller size' in tiny
