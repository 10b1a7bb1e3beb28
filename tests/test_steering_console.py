import asyncio
import threading

import pytest
import torch

from mi_utils import language_worlds, steering_console
from mi_utils.markup import element, to_html
from mi_utils.steering import Addition, Gauge, generate, next_logits, stream
from mi_utils.steering_console import LATER, ORTHOGONAL, SUM, Place, combined, effects, interference, pairs_tree


@pytest.fixture(scope="module")
def world():
    return language_worlds.planted_concepts()


@pytest.fixture(scope="module")
def place(world):
    return Place(world.hook_name, 8.0, world.directions)


@pytest.fixture(scope="module")
def gauges(world):
    return {name: Gauge(world.model, concept) for name, concept in world.concepts.items()}


PROMPT = "fillera fillerb"


@pytest.fixture
def make(world, place, gauges):
    """Makes consoles; one that is made within a loop works in that loop."""
    later = Place("blocks.0.hook_resid_post", 8.0, world.directions)
    start = {"one": 0.2, "gated": 0.1}
    return lambda: Controls(
        steering_console.steering_console(world.model, place, gauges, later, prompt=PROMPT, start=start)
    )


@pytest.fixture
def console(make):
    return make()


class Controls:
    """The parts of a console by what they are for."""

    def __init__(self, stack):
        self.stack = stack
        self.prompt, first, second, third, last, self.view, self.pairs = stack.children
        self.names, self.doses = zip(*(slot.children for slot in (first, second, third)), strict=True)
        self.how, self.ask = last.children

    def html(self):
        return to_html(self.view.tree)


async def settled():
    """Wait until nothing but the caller runs."""
    await asyncio.sleep(0.05)
    while len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0.02)


def text_of(world, additions=()):
    *_, tokens = stream(world.model, PROMPT, additions)
    return world.model.tokenizer.decode(tokens)


class TestConsole:
    def test_begins_with_both_texts_and_every_concept(self, world, console, place):
        html = console.html()
        assert text_of(world, [place.addition("one", 0.2), place.addition("gated", 0.1)]) in html
        assert text_of(world) in html
        assert all(f">{name}<" in html for name in world.concepts)
        assert html.count("nats a token") == 2

    def test_doses_of_zero_give_the_models_own_text_bit_by_bit(self, world, console):
        for dose in console.doses:
            dose.value = 0.0
        tokens = world.model.to_tokens(PROMPT)
        own = world.model.generate(
            tokens, max_new_tokens=20, do_sample=False, stop_at_eos=False, return_type="tokens", verbose=False
        )
        assert console.html().count(world.model.tokenizer.decode(own[0, tokens.shape[1] :])) == 2
        assert "every dose is 0" in console.html()
        assert "+0.00" in console.html()

    def test_a_slider_writes_anew(self, world, console, place):
        console.doses[1].value = 0.0
        console.doses[0].value = -0.3
        assert text_of(world, [place.addition("one", -0.3)]) in console.html()

    def test_a_stale_run_stops_at_its_next_token_and_leaves_no_trace(self, make, monkeypatch):
        drawn = []

        async def hurry():
            console = make()
            monkeypatch.setattr(
                steering_console, "console_tree", lambda prompt, *_: drawn.append(prompt) or element("p", "", prompt)
            )
            for prompt in ("fillera", "fillerb", "fillerc"):
                console.prompt.value = prompt
                await asyncio.sleep(0.02)
            await settled()
            assert console.html() == "<p>fillerc</p>"

        asyncio.run(hurry())
        assert drawn.index("fillerc") == len(drawn) - drawn.count("fillerc")  # none of the others comes after
        assert drawn.count("fillera") < 2 * steering_console.N_TOKENS

    def test_a_queue_of_settings_costs_one_run(self, make, monkeypatch):
        runs = []

        async def hurry():
            console = make()
            monkeypatch.setattr(steering_console, "effects", lambda *given: runs.append(given) or effects(*given))
            for dose in (0.3, 0.35, 0.4):  # while a cell runs, nothing is done
                console.doses[0].value = dose
            assert not runs
            await settled()
            assert "one +0.40" in console.html()

        asyncio.run(hurry())
        assert len(runs) == 1

    def test_other_cells_use_the_model_unsteered_while_a_run_goes_on(self, world, make):
        clean, seen = next_logits(world.model, [PROMPT]), []

        async def use():
            make().doses[0].value = 0.5
            for _ in range(5):
                await asyncio.sleep(0.01)
                seen.append(next_logits(world.model, [PROMPT]))
            await settled()

        asyncio.run(use())
        assert all(torch.equal(logits, clean) for logits in seen)

    def test_a_setting_from_another_thread_waits_for_the_cell_that_runs(self, world, make):
        clean, seen = next_logits(world.model, [PROMPT]), []

        async def use():
            console = make()
            before = console.html()
            frontend = threading.Thread(target=setattr, args=(console.doses[0], "value", -0.5))
            frontend.start()
            for _ in range(30):
                seen.append(next_logits(world.model, [PROMPT]))
            frontend.join()
            assert console.html() == before
            await settled()
            assert "one -0.50" in console.html()

        asyncio.run(use())
        assert all(torch.equal(logits, clean) for logits in seen)

    @pytest.mark.parametrize(("prompt", "says"), [("", "has 0 tokens"), ("fillera " * 400, "expected 1 to 128")])
    def test_what_cannot_be_run_is_said_above_the_old_text(self, console, prompt, says):
        before = console.html()
        console.prompt.value = prompt
        assert "ValueError" in console.view.message
        assert says in console.view.message
        assert console.html() == before
        console.prompt.value = PROMPT
        assert console.view.message == ""

    def test_an_error_in_the_loop_is_shown(self, make, monkeypatch):
        async def fail():
            console = make()
            monkeypatch.setattr(steering_console, "effects", lambda *_: 1 / 0)
            console.doses[0].value = 0.5
            await settled()
            assert console.view.message == "ZeroDivisionError: division by zero"

        asyncio.run(fail())

    def test_hostile_text_stays_text(self, console):
        console.prompt.value = "<img src=x onerror=alert(1)> fillera"
        assert "<img" not in console.html()
        assert "&lt;img" in console.html()

    def test_an_exported_page_keeps_the_last_state(self, console):
        console.doses[0].value = 0.35
        assert to_html(console.view.tree) in console.stack.static_html()

    def test_pairs_are_drawn_on_request(self, console):
        assert console.pairs.tree == ""
        console.ask.click()
        assert "observed minus predicted" in to_html(console.pairs.tree)
        assert console.pairs.message == ""

    def test_pairs_of_an_impossible_prompt_are_refused(self, console):
        console.prompt.value = ""
        console.ask.click()
        assert "ValueError" in console.pairs.message

    @pytest.mark.parametrize(
        ("start", "says"),
        [({"nonsense": 0.1}, "no direction 'nonsense'"), (dict.fromkeys("abcd", 0.1), "there are 3 sliders")],
    )
    def test_refuses_a_start_that_cannot_be(self, world, place, gauges, start, says):
        with pytest.raises(ValueError, match=says):
            steering_console.steering_console(world.model, place, gauges, prompt=PROMPT, start=start)

    def test_refuses_a_later_place_without_the_same_directions(self, world, place, gauges):
        later = Place("blocks.0.hook_resid_post", 8.0, {"one": world.directions["one"]})
        with pytest.raises(ValueError, match="lacks gate, gated, two"):
            steering_console.steering_console(world.model, place, gauges, later, prompt=PROMPT)


class TestCombined:
    def test_a_sum_leaves_each_as_it_is(self, place):
        one, two = combined(place, None, [("one", 0.5), ("two", -0.25)], SUM)
        assert torch.allclose(one.vector, 4.0 * place.directions["one"])
        assert torch.allclose(two.vector, -2.0 * place.directions["two"])

    def test_later_ones_lose_what_they_share_and_keep_their_length(self):
        shared = Place("a", 1.0, {"x": torch.tensor([1.0, 0.0]), "xy": torch.tensor([0.6, 0.8])})
        first, second = combined(shared, None, [("x", 1.0), ("xy", 0.5)], ORTHOGONAL)
        assert torch.allclose(first.vector, torch.tensor([1.0, 0.0]))
        assert torch.allclose(second.vector, torch.tensor([0.0, 0.5]), atol=1e-6)

    def test_the_first_stays_and_the_rest_goes_to_the_later_place(self, place):
        later = Place("elsewhere", 2.0, place.directions)
        hooks = [a.hook_name for a in combined(place, later, [("one", 1.0), ("two", 1.0), ("gate", 1.0)], LATER)]
        assert hooks == [place.hook_name, "elsewhere", "elsewhere"]


class TestEffects:
    def test_are_those_of_the_gauges(self, world, place, gauges):
        additions = [place.addition("one", 0.2)]
        found = effects(world.model, PROMPT, additions, gauges)
        gauge = Gauge(world.model, world.concepts["one"], [PROMPT])
        assert found.shifts["one"] == pytest.approx(float(gauge(additions)), abs=1e-4)
        assert found.predicted == found.shifts
        assert found.divergence > 0

    def test_nothing_added_moves_nothing(self, world, gauges):
        found = effects(world.model, PROMPT, [], gauges)
        assert set(found.shifts.values()) == {0.0}
        assert found.divergence == 0.0

    def test_interference_is_seen_where_it_was_planted_and_nowhere_else(self, world, place, gauges):
        gaps = interference(world.model, PROMPT, place, gauges)
        assert gaps.pop(("gated", "gate")) < -1.0
        assert max(map(abs, gaps.values())) < 0.1
        assert len(gaps) == 11

    def test_pairs_need_two_directions_with_gauges(self, world, place, gauges):
        with pytest.raises(ValueError, match="two directions that have a gauge"):
            interference(world.model, PROMPT, place, {"one": gauges["one"]})

    def test_each_concept_gets_its_own_prediction_and_together_is_what_the_model_does(self, world, place, gauges):
        one, two = place.addition("gate", 0.2), place.addition("gated", 0.2)
        found = effects(world.model, PROMPT, [one, two], gauges)
        gauge = Gauge(world.model, world.concepts["gated"], [PROMPT])
        assert found.shifts["gated"] == pytest.approx(float(gauge([one, two])), abs=1e-4)
        assert found.predicted["gated"] == pytest.approx(float(gauge([one]) + gauge([two])), abs=1e-4)

    def test_a_pair_is_drawn_in_its_own_cell(self):
        html = to_html(pairs_tree({("a", "b"): 0.5, ("b", "a"): -1.0}))
        assert html.index("+0.50") < html.index("-1.00")


def test_a_stream_is_what_greedy_generation_writes(world, place):
    additions = [place.addition("one", 0.3)]
    *_, tokens = stream(world.model, PROMPT, additions, n_tokens=6)
    assert torch.equal(tokens, generate(world.model, [PROMPT], additions, n_tokens=6, temperature=0.0).tokens[0])


def test_a_stream_steers_only_while_it_computes(world):
    clean = next_logits(world.model, [PROMPT])
    running = stream(world.model, PROMPT, [Addition(world.hook_name, 5 * world.directions["one"])])
    next(running)
    assert torch.equal(next_logits(world.model, [PROMPT]), clean)
