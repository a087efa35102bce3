"""The measuring protocol, on a clock that the test moves."""

from __future__ import annotations

import gc
import json

import pytest
import torch

from gatefx.errors import InputError
from gatefx.runtime.energy import energy_per_call
from gatefx.runtime.profile import Timing, compare, pinned_threads, ratios


class FakeClock:
    """Stands still unless a candidate moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def candidate(self, seconds: float, log: list[str] | None = None, name: str = ""):
        def run() -> None:
            self.now += seconds
            if log is not None:
                log.append(name)

        return run


class TestCompare:
    def test_seconds_are_the_candidate_s_own(self) -> None:
        clock = FakeClock()
        timings = compare({"a": clock.candidate(2.0), "b": clock.candidate(0.5)}, rounds=4, clock=clock)
        assert (timings["a"].median_s, timings["b"].median_s) == (2.0, 0.5)
        assert timings["a"].runs == (2.0,) * 4
        assert timings["a"].iqr_s == 0.0

    def test_seconds_are_per_call(self) -> None:
        clock = FakeClock()
        assert compare({"a": clock.candidate(2.0)}, repeats=7, rounds=1, clock=clock)["a"].median_s == 2.0

    def test_warm_up_is_dropped(self) -> None:
        clock, calls = FakeClock(), []

        def cold_at_first() -> None:
            calls.append(None)
            clock.now += 100.0 if len(calls) <= 5 else 1.0

        timing = compare({"a": cold_at_first}, warmup=5, rounds=3, clock=clock)["a"]
        assert timing.runs == (1.0, 1.0, 1.0)
        assert len(calls) == 8

    def test_every_candidate_stands_in_every_place(self) -> None:
        clock, log = FakeClock(), []
        names = ["a", "b", "c"]
        compare({n: clock.candidate(1.0, log, n) for n in names}, warmup=0, rounds=30, clock=clock)
        rounds = [tuple(log[i : i + 3]) for i in range(0, len(log), 3)]
        assert all(sorted(order) == names for order in rounds)
        for place in range(3):
            assert {n: sum(order[place] == n for order in rounds) for n in names} == dict.fromkeys(names, 10)
        assert len(set(rounds)) > 3

    def test_the_order_repeats_with_the_seed(self) -> None:
        def order(seed: int) -> list[str]:
            clock, log = FakeClock(), []
            compare({n: clock.candidate(1.0, log, n) for n in "abcd"}, rounds=9, seed=seed, clock=clock)
            return log

        assert order(1) == order(1) != order(2)

    def test_collector_rests_and_comes_back(self) -> None:
        seen = []
        compare({"a": lambda: seen.append(gc.isenabled())}, rounds=2)
        assert set(seen) == {False}
        assert gc.isenabled()

    def test_collector_comes_back_after_a_failure(self) -> None:
        def fails() -> None:
            raise RuntimeError("no such kernel")

        with pytest.raises(RuntimeError, match="no such kernel"):
            compare({"a": fails})
        assert gc.isenabled()

    def test_synchronize_is_inside_the_timing(self) -> None:
        clock = FakeClock()
        timings = compare({"a": lambda: None}, rounds=2, synchronize=clock.candidate(3.0), clock=clock)
        assert timings["a"].median_s == 3.0

    @pytest.mark.parametrize("wrong", [{"warmup": -1}, {"rounds": 0}, {"repeats": 0}])
    def test_counts_out_of_range(self, wrong: dict[str, int]) -> None:
        with pytest.raises(InputError, match=next(iter(wrong))):
            compare({"a": lambda: None}, **wrong)

    def test_nothing_to_time(self) -> None:
        with pytest.raises(InputError, match="Nothing to time"):
            compare({})


class TestRatios:
    def test_are_taken_round_by_round(self) -> None:
        # The machine slows down tenfold half-way: each round's ratio stays 2, that of medians would not.
        base = Timing.of([1.0, 1.0, 10.0, 10.0, 10.0])
        twice = Timing.of([2.0, 2.0, 20.0, 20.0, 20.0])
        assert ratios({"base": base, "twice": twice}, "base") == {"base": 1.0, "twice": 2.0}

    def test_unknown_baseline(self) -> None:
        with pytest.raises(InputError, match="base"):
            ratios({"base": Timing.of([1.0])}, "merged")

    def test_different_numbers_of_rounds(self) -> None:
        with pytest.raises(InputError, match="round by round"):
            ratios({"a": Timing.of([1.0]), "b": Timing.of([1.0, 2.0])}, "a")


def test_timing_as_json() -> None:
    timing = Timing.of([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (timing.median_s, timing.iqr_s, timing.p10, timing.p90) == (3.0, 2.0, 1.4, 4.6)
    assert Timing.of(json.loads(json.dumps(timing.to_json()))["runs"]) == timing


class TestThreads:
    def test_count_is_put_back(self) -> None:
        def fail_inside() -> None:
            with pinned_threads(2):
                assert torch.get_num_threads() == 2
                raise RuntimeError("inside")

        before = torch.get_num_threads()
        with pytest.raises(RuntimeError, match="inside"):
            fail_inside()
        assert torch.get_num_threads() == before

    def test_count_below_one(self) -> None:
        with pytest.raises(InputError, match="at least one"), pinned_threads(0):
            pass


class TestEnergy:
    @staticmethod
    def counters(root, *packages: int):
        for number, microjoules in enumerate(packages):
            package = root / f"intel-rapl:{number}"
            package.mkdir()
            (package / "energy_uj").write_text(f"{microjoules}\n")
            (package / "max_energy_range_uj").write_text("1000\n")
        part = root / "intel-rapl:0:0"
        part.mkdir()
        (part / "energy_uj").write_text("7\n")
        return root

    def test_joules_of_all_packages_per_call(self, tmp_path) -> None:
        root, clock = self.counters(tmp_path, 100, 200), FakeClock()

        def run() -> None:
            clock.now += 0.25
            for number in range(2):
                counter = root / f"intel-rapl:{number}" / "energy_uj"
                counter.write_text(str(int(counter.read_text()) + 30))

        energy = energy_per_call(run, seconds=0.5, counters=root, clock=clock)
        assert energy.calls == 2
        assert energy.joules == pytest.approx(60e-6)

    def test_the_counter_starts_over(self, tmp_path) -> None:
        root, clock = self.counters(tmp_path, 990), FakeClock()

        def run() -> None:
            clock.now += 1.0
            (root / "intel-rapl:0" / "energy_uj").write_text("15")

        assert energy_per_call(run, counters=root, clock=clock).joules == pytest.approx(25e-6)

    def test_no_counters_is_none_with_the_reason(self, tmp_path) -> None:
        absent, empty = (energy_per_call(lambda: None, counters=p) for p in (tmp_path / "none", tmp_path))
        assert (absent.joules, empty.joules) == (None, None)
        assert "does not exist" in absent.reason
        assert "lists no processor package" in empty.reason

    def test_window_of_no_length(self) -> None:
        with pytest.raises(InputError, match="positive"):
            energy_per_call(lambda: None, seconds=0)
