"""Groups that change: set at any time, and raised where they no longer reach, against a reference of unrotated keys."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import architectures
import numpy as np
import pytest
from context import ATTN, ROUNDING, Context, load, open_model
from reference import Array, kl_divergence, relative_position
from reference_cache import CachedReference
from test_reference import some_tokens

N_CTX_TRAIN = 64  # of the models here: limits come soon
GA_W = 16
GA_N_MAX = 8  # which reaches 400 tokens
N_CTX = 384
N_SEQ = 3
F32, F16, Q8_0, Q4_0 = 0, 1, 8, 2
MODELS = ["llama", "llama-yarn", "qwen3", "gemma3", "phi2"]


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    with _opened(request.param, tmp_path_factory.mktemp("groups")) as found:
        yield found


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    with _opened("llama", tmp_path_factory.mktemp("groups")) as found:
        yield found


@contextmanager
def _opened(name: str, folder: Path) -> Iterator[tuple[Path, Any]]:
    path = architectures.make_tiny().make(folder / f"{name}.gguf", name, N_CTX_TRAIN)
    with open_model(path) as model:
        yield path, model


def reaches(pos: int, ga_n: int, ga_w: int = GA_W, ga_map: str = "self-extend") -> bool:
    """Whether a query there sees the first key within what the model was trained on."""
    group = ga_n / unit(ga_map)
    return float(relative_position(np.array(pos), np.array(0), group, ga_w, ga_map)) < N_CTX_TRAIN


def unit(ga_map: str) -> int:
    """The group size of the plain model."""
    return 64 if ga_map == "lampe" else 1


def raised(pos: int, ga_n: int, ga_map: str = "self-extend") -> int:
    while not reaches(pos, ga_n, ga_map=ga_map):
        ga_n = min(GA_N_MAX * unit(ga_map), 2 ** (ga_n.bit_length()))
    return ga_n


def follow(reference: CachedReference, tokens: Sequence[int]) -> Array:
    """Logits of tokens of a sequence whose group is raised where it has to be."""
    logits = []
    first = int(reference.pos.max()) + 1 if len(reference.pos) else 0
    for i, token in enumerate(tokens):
        reference.ga_n = raised(first + i, reference.ga_n)
        logits.append(reference.extend([token]))
    return np.concatenate(logits)


#
# the raise
#


@pytest.mark.parametrize("attn", ATTN)
@pytest.mark.parametrize("n_ubatch", [64, 7])
def test_a_batch_beyond_the_reach(case: tuple[Path, Any], attn: int, n_ubatch: int) -> None:
    """One batch over four groups: each begins at the first token that the one before does not reach."""
    path, model = case
    tokens = some_tokens(380)
    reference = CachedReference(path, 1, GA_W)
    exact = follow(reference, tokens)
    with Context(
        model, 1, GA_W, ga_n_max=GA_N_MAX, attn=attn, n_ctx=N_CTX, n_ubatch=n_ubatch, type_k=F32, type_v=F32,
        flash_attn_type=0,  # llama.cpp's flash attention rounds, in the layers with a window
    ) as ctx:  # fmt: skip
        assert ctx.group() == 1
        assert np.abs(ctx.logits(tokens[:300].tolist()) - exact[:300]).max() < ROUNDING
        assert ctx.group() == reference.ga_n == 8
        for i in range(300, 380):
            assert np.abs(ctx.logits(tokens[i : i + 1].tolist(), i) - exact[i]).max() < ROUNDING


def test_where_it_is_raised(llama: tuple[Path, Any]) -> None:
    """At the first token of the next limit, and to powers of two; ga_n_max need not be one."""
    _, model = llama
    tokens = some_tokens(250).tolist()
    with Context(model, 1, GA_W, ga_n_max=5, n_ctx=255) as ctx:
        seen = [ctx.group()]
        for i, token in enumerate(tokens):
            ctx.logits([token], i)
            if ctx.group() != seen[-1]:
                assert not reaches(i, seen[-1])
                assert reaches(i - 1, seen[-1])
                seen.append(ctx.group())
        assert seen == [1, 2, 4, 5]
        assert ctx.remove(0, -1)
        assert ctx.group() == 1  # the next text begins anew


@pytest.mark.parametrize("unified", [False, True])
def test_a_batch_of_several_sequences(llama: tuple[Path, Any], unified: bool) -> None:
    """Each is raised at its own limit, in streams of their own; with one buffer, at the first limit of any."""
    path, model = llama
    tokens = [some_tokens(150, seed=seed).tolist() for seed in range(2)]
    options: dict[str, Any] = {"n_seq_max": 2, "kv_unified": unified, "n_ctx": 2 * N_CTX, "type_k": F32, "type_v": F32}
    with Context(model, 1, GA_W, ga_n_max=GA_N_MAX, flash_attn_type=0, **options) as ctx:
        for seq, n_before in enumerate([10, 60]):
            ctx.logits(tokens[seq][:n_before], seq=seq)
        batch = [
            (tokens[seq][n_before + i], n_before + i, seq) for i in range(40) for seq, n_before in ((0, 10), (1, 60))
        ]
        status, logits = ctx.decode(batch)
        assert status == 0
        assert [ctx.group(seq) for seq in (0, 1)] == ([2, 2] if unified else [1, 2])
        references = [CachedReference(path, 1, GA_W) for _ in range(2)]
        for seq, n_before in enumerate([10, 60]):
            references[seq].extend(tokens[seq][:n_before])
        for (token, pos, seq), row in zip(batch, logits, strict=True):
            ga_n = raised(pos, references[seq].ga_n)
            for reference in references if unified else [references[seq]]:
                reference.ga_n = max(ga_n, reference.ga_n)
            assert np.abs(row - references[seq].extend([token])[0]).max() < ROUNDING, (pos, seq)


def test_a_position_beyond_the_last_group(llama: tuple[Path, Any]) -> None:
    _, model = llama
    tokens = some_tokens(130).tolist()
    with Context(model, 1, GA_W, ga_n_max=2, n_ctx=112) as ctx:
        ctx.logits(tokens[:50])
        status, _ = ctx.decode([(token, i, 0) for i, token in enumerate(tokens[:113])][50:])
        assert status == 1
        assert (ctx.group(), ctx.pos_max()) == (1, 49)
        ctx.logits(tokens[50:112], 50)
        assert ctx.decode([(tokens[0], 112, 0)])[0] == 1
        assert (ctx.group(), ctx.pos_max()) == (2, 111)


def test_inside_the_window_it_is_the_plain_model(case: tuple[Path, Any]) -> None:
    """Up to rounding, whatever the batches are."""
    _, model = case
    tokens = some_tokens(N_CTX_TRAIN).tolist()
    with Context(model, 1, 0, n_ctx=N_CTX_TRAIN, type_k=F32, type_v=F32, flash_attn_type=0) as plain:
        exact = plain.logits(tokens)
    for n_ubatch in (64, 5, 1):
        with Context(
            model, 1, GA_W, ga_n_max=GA_N_MAX, n_ctx=N_CTX, n_ubatch=n_ubatch, type_k=F32, type_v=F32,
            flash_attn_type=0,
        ) as ctx:  # fmt: skip
            assert np.abs(ctx.logits(tokens) - exact).max() < 1e-3
            assert ctx.group() == 1


#
# the change
#


@pytest.mark.parametrize("attn", ATTN)
@pytest.mark.parametrize(("ga_w", "flash"), [(GA_W, 0), (GA_W, 1), (0, 0), (7, 1)])
def test_up_and_down(case: tuple[Path, Any], attn: int, ga_w: int, flash: int) -> None:
    path, model = case
    if "gemma3" in path.name and flash:
        flash = 0  # llama.cpp's rounds, in the layers with a window
    tokens = some_tokens(150)
    reference = CachedReference(path, 4, ga_w)
    exact = reference.extend(tokens[:50])
    with Context(model, 4, ga_w, attn=attn, n_ctx=192, type_k=F32, type_v=F32, flash_attn_type=flash) as ctx:
        assert np.abs(ctx.logits(tokens[:50].tolist()) - exact).max() < ROUNDING
        for i, ga_n in enumerate([1, 3, 3, 40, 1, 2, 5]):
            first = 50 + 2 * i
            assert ctx.set_group(0, ga_n)
            assert ctx.group() == ga_n
            reference.ga_n = ga_n
            logits = ctx.logits(tokens[first : first + 2].tolist(), first)
            assert np.abs(logits - reference.extend(tokens[first : first + 2])).max() < ROUNDING, ga_n
        assert ctx.set_group(0, 8)
        assert ctx.set_group(0, 5)  # back before anything was turned
        assert np.abs(ctx.logits(tokens[64:150].tolist(), 64) - reference.extend(tokens[64:150])).max() < ROUNDING


@pytest.mark.parametrize("cache", [F16, Q8_0, Q4_0])
def test_rounding_of_changes(llama: tuple[Path, Any], cache: int) -> None:
    """A key is rounded once more at each change: what that costs is of the size of the cache's own rounding."""
    path, model = llama
    tokens = some_tokens(300)
    reference = CachedReference(path, 8, GA_W)
    exact = reference.extend(tokens)[200:]
    costs = []
    for changes in ([], [4], [4, 16, 2, 8]):
        with Context(model, 8, GA_W, n_ctx=N_CTX, type_k=cache, type_v=cache, flash_attn_type=1) as ctx:
            ctx.logits(tokens[:200].tolist())
            for ga_n in [*changes, 8]:
                assert ctx.set_group(0, ga_n) or not reaches(199, ga_n)
                ctx.library.apply_shifts(ctx.ctx)
            costs.append(kl_divergence(exact, ctx.logits(tokens[200:].tolist(), 200)).mean())
    assert costs[0] < costs[-1] < 12 * costs[0], costs


#
# sequences, states, and all of it in any order
#


class Sequences:
    """A context with three sequences, and a reference for each."""

    def __init__(
        self,
        path: Path,
        model: Any,
        rng: random.Random,
        *,
        kv_unified: bool,
        ga_map: str = "self-extend",
        groups: Sequence[int] = (1, 2, 3, 4, 6, 8, 20),
        **options: Any,
    ) -> None:
        self.rng, self.unified, self.ga_map, self.choices = rng, kv_unified, ga_map, groups
        self.plain = unit(ga_map)
        n_ctx = N_CTX * N_SEQ
        self.ctx = Context(
            model, self.plain, GA_W, ga_n_max=GA_N_MAX * self.plain, ga_map=ga_map, n_seq_max=N_SEQ,
            kv_unified=kv_unified, n_ctx=n_ctx, type_k=F32, type_v=F32, **options,
        )  # fmt: skip
        self.empty = CachedReference(path, self.plain, GA_W, ga_map=ga_map)
        self.held = {seq: self.empty.fork() for seq in range(N_SEQ)}
        self.groups = dict.fromkeys(range(1 if kv_unified else N_SEQ), self.plain)  # of each buffer
        self.is_swa = "gemma" in path.name
        self.saved: list[tuple[bytes, CachedReference, int]] = []
        self.done: Counter[str] = Counter()

    def stream(self, seq: int) -> int:
        return 0 if self.unified else seq

    def length(self, seq: int) -> int:
        pos = self.held[seq].pos
        return int(pos.max()) + 1 if len(pos) else 0

    def sharing(self, seq: int) -> list[int]:
        return [s for s in self.held if self.stream(s) == self.stream(seq)]

    def grow(self, sequences: Sequence[int], n: int) -> None:
        """In one batch; references token by token, in the order of the batch, with the group of the moment."""
        batch, exact = [], []
        for seq in sequences:
            first = self.length(seq)
            tokens = some_tokens(max(0, min(n, N_CTX - 10 - first)), seed=self.rng.randrange(1000)).tolist()
            batch += [(token, first + i, seq) for i, token in enumerate(tokens)]
        steps = []
        for token, pos, seq in batch:
            stream = self.stream(seq)
            self.groups[stream] = raised(pos, self.groups[stream], self.ga_map)
            steps.append((seq, self.groups[stream], token))
        for (seq, ga_n), run in groupby(steps, key=lambda step: step[:2]):
            self.held[seq].ga_n = ga_n
            exact.append(self.held[seq].extend([token for *_, token in run]))
        if batch:
            status, logits = self.ctx.decode(batch)
            assert status == 0
            assert np.abs(logits - np.concatenate(exact)).max() < ROUNDING, (sequences, self.groups, self.done)

    def forget(self, streams: Sequence[int], before: dict[int, bool]) -> None:
        """A buffer of which the last token was removed begins anew."""
        for stream in streams:
            if before[stream] and not self.used()[stream]:
                self.groups[stream] = self.plain

    def used(self) -> dict[int, bool]:
        return {stream: any(self.length(s) for s in self.held if self.stream(s) == stream) for stream in self.groups}

    def operate_often(self) -> None:
        """And compare all that is there in the end."""
        with self.ctx:
            for _ in range(60):
                self.operate()
            for seq in range(N_SEQ):
                self.grow([seq], 3)
        assert self.done["set"] > 3
        assert self.done["grow"] > 5

    def operate(self) -> None:
        ctx, rng, held = self.ctx, self.rng, self.held
        seq, other = rng.randrange(N_SEQ), rng.randrange(N_SEQ)
        length, before = self.length(seq), self.used()
        what = rng.choices(
            ["grow", "together", "set", "cut", "remove", "copy", "drop", "save", "load"], [6, 3, 5, 4, 0.7, 2, 2, 1, 2]
        )[0]
        if what == "grow":
            self.grow([seq], rng.choice([1, 1, 5, 40, 100]))
        elif what == "together":
            self.grow(rng.sample(range(N_SEQ), 2), rng.choice([1, 4, 60]))
        elif what == "set":
            ga_n = rng.choice(self.choices)
            lengths = filter(None, map(self.length, self.sharing(seq)))
            can = all(reaches(length - 1, ga_n, ga_map=self.ga_map) for length in lengths)
            assert ctx.set_group(seq, ga_n) == can
            if can:
                self.groups[self.stream(seq)] = ga_n
        elif what == "cut" and length > 1:
            keep = max(1, length - rng.choice([1, 3, 20, 70, 150]))
            if ctx.remove(seq, keep):
                held[seq].remove(keep, length)
            else:
                assert self.is_swa
        elif what == "remove":
            assert ctx.remove(seq, -1)
            held[seq] = self.empty.fork()
        elif what == "copy" and length and not self.length(other):
            part = rng.randrange(1, length + 1) if self.unified and not self.is_swa else length
            ctx.copy(seq, other, part if part < length else -1)
            held[other] = held[seq].fork(part)
            if self.stream(other) != self.stream(seq):
                self.groups[self.stream(other)] = self.groups[self.stream(seq)]
        elif what == "drop" and length > 20 and ctx.can_shift() and not self.shares_cells(seq):
            n_keep, n_drop = rng.randrange(5), rng.randrange(1, length - 10)
            assert ctx.remove(seq, n_keep, n_keep + n_drop)
            ctx.shift(seq, n_keep + n_drop, -1, -n_drop)
            held[seq].remove(n_keep, n_keep + n_drop)
            held[seq].shift(n_keep + n_drop, 1 << 30, -n_drop)
        elif what == "save" and length:
            self.saved.append((ctx.save(seq), held[seq].fork(), self.groups[self.stream(seq)]))
        elif what == "load" and self.saved:
            data, reference, ga_n = rng.choice(self.saved)
            if ctx.load(data, seq):
                others = [s for s in self.sharing(seq) if s != seq and self.length(s)]
                stream = self.stream(seq)
                self.groups[stream] = max(ga_n, self.groups[stream]) if others else ga_n
                held[seq] = reference.fork()
            else:
                assert self.unified  # too little room
        self.done[what] += 1
        self.forget(list(self.groups), before)
        for s in held:
            assert ctx.pos_max(s) == self.length(s) - 1, (what, s)
            assert ctx.group(s) == self.groups[self.stream(s)], (what, s, self.groups)

    def shares_cells(self, seq: int) -> bool:
        """Copies share cells, which move for all of them."""
        return self.unified and any(s != seq and self.length(s) for s in self.held)


@pytest.mark.parametrize("attn", ATTN)
@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_random_operations(case: tuple[Path, Any], unified: bool, seed: int, attn: int) -> None:
    path, model = case
    sequences = Sequences(
        path, model, random.Random(seed), kv_unified=unified, attn=attn, swa_full=True,
        flash_attn_type=0 if "gemma3" in path.name else seed % 2,  # llama.cpp's rounds, in the layers with a window
    )  # fmt: skip
    sequences.operate_often()


def test_states_bring_their_groups(llama: tuple[Path, Any]) -> None:
    """That of a sequence, and those of all; in a context that was opened with one group size, only that."""
    _, model = llama
    tokens = some_tokens(160)
    options: dict[str, Any] = {"n_seq_max": 2, "kv_unified": False, "n_ctx": 2 * N_CTX, "type_k": F32, "type_v": F32}
    with Context(model, 1, GA_W, ga_n_max=GA_N_MAX, **options) as ctx:
        for seq, ga_n in enumerate([4, 3]):
            assert ctx.set_group(seq, ga_n)
            ctx.logits(tokens[:100].tolist(), seq=seq)
        one, whole = ctx.save(0), ctx.save()
        assert ctx.set_group(1, 2)  # not yet turned: a state holds keys that are where they belong
        turned = ctx.save(1)
        exact = {seq: ctx.logits(tokens[100:].tolist(), 100, seq) for seq in (0, 1)}

        assert ctx.load(one, 1)
        assert (ctx.group(0), ctx.group(1)) == (4, 4)
        assert np.array_equal(ctx.logits(tokens[100:].tolist(), 100, 1), exact[0])
        assert ctx.load(whole)
        assert (ctx.group(0), ctx.group(1)) == (4, 3)
        assert ctx.load(turned, 0)
        assert ctx.group(0) == 2
        assert np.array_equal(ctx.logits(tokens[100:].tolist(), 100, 0), exact[1])

    with Context(model, 2, GA_W, **{**options, "n_ctx": 2 * 112}) as ctx:
        ctx.logits(tokens[:50].tolist())
        assert not ctx.load(one, 0)
        assert ctx.library.last_error() == (
            "the state was saved with ga_n = 4 and ga_w = 16, this context has ga_n = 2 and ga_w = 16"
        )
        assert (ctx.pos_max(), ctx.group()) == (49, 2)
        assert ctx.load(turned, 0)
        assert (ctx.pos_max(), ctx.group()) == (99, 2)


def test_a_state_joins_a_buffer_with_another_group(llama: tuple[Path, Any]) -> None:
    """The larger one is that of all."""
    path, model = llama
    tokens = some_tokens(160)
    options: dict[str, Any] = {"n_seq_max": 2, "kv_unified": True, "n_ctx": 2 * N_CTX, "type_k": F32, "type_v": F32}
    for mine, its in [(1, 4), (4, 1)]:
        references = {ga_n: CachedReference(path, ga_n, GA_W) for ga_n in (mine, its)}
        for reference in references.values():
            reference.extend(tokens[:60])
        with Context(model, 1, GA_W, ga_n_max=GA_N_MAX, **options) as ctx:
            assert ctx.set_group(0, its)
            ctx.logits(tokens[:60].tolist())
            data = ctx.save(0)
            assert ctx.remove(0, -1)
            assert ctx.set_group(0, mine)
            ctx.logits(tokens[:60].tolist())
            assert ctx.load(data, 1)
            assert (ctx.group(0), ctx.group(1)) == (4, 4)
            for seq, ga_n in enumerate([mine, its]):
                references[ga_n].ga_n = 4
                expected = references[ga_n].extend(tokens[60:])
                assert np.abs(ctx.logits(tokens[60:].tolist(), 60, seq) - expected).max() < ROUNDING


def test_changes_that_wait_with_copies_and_shifts(llama: tuple[Path, Any]) -> None:
    """A copy's keys are in the group of its source; a shift is carried out in the old group before the new comes."""
    path, model = llama
    tokens = some_tokens(200)
    options: dict[str, Any] = {"n_seq_max": 3, "kv_unified": False, "n_ctx": 3 * N_CTX, "type_k": F32, "type_v": F32}
    with Context(model, 1, GA_W, ga_n_max=GA_N_MAX, flash_attn_type=0, **options) as ctx:
        assert ctx.set_group(0, 4)
        references = [CachedReference(path, 4, GA_W)]
        references[0].extend(tokens[:100])
        ctx.logits(tokens[:100].tolist())
        for seq, ga_n in [(1, 2), (2, 3)]:
            ctx.copy(0, seq)
            assert ctx.group(seq) == 4
            assert ctx.set_group(seq, ga_n)
            references.append(references[0].fork())
            references[seq].ga_n = ga_n
        ctx.set_group(0, 6)
        ctx.remove(0, 5, 38)
        ctx.shift(0, 38, -1, -33)
        references[0].ga_n = 6
        references[0].remove(5, 38)
        references[0].shift(38, 1 << 30, -33)
        for seq, first in [(1, 100), (0, 67), (2, 100)]:
            exact = follow(references[seq], tokens[100:140])
            assert np.abs(ctx.logits(tokens[100:140].tolist(), first, seq) - exact).max() < ROUNDING, seq


def test_a_shift_beyond_the_reach_raises_the_group(llama: tuple[Path, Any]) -> None:
    """As tokens there would; beyond the last reach it is refused."""
    path, model = llama
    tokens = some_tokens(80)
    reference = CachedReference(path, 1, GA_W)
    reference.extend(tokens[:60])
    with Context(model, 1, GA_W, ga_n_max=4, n_ctx=208, type_k=F32, type_v=F32, flash_attn_type=0) as ctx:
        ctx.logits(tokens[:60].tolist())
        ctx.shift(0, 30, -1, 200)  # 259 is beyond the reach of 4, 208
        assert (ctx.pos_max(), ctx.group()) == (59, 1)
        ctx.shift(0, 30, -1, 60)
        assert (ctx.pos_max(), ctx.group()) == (119, 4)
        reference.shift(30, 60, 60)
        reference.ga_n = 4
        exact = reference.extend(tokens[60:])
        assert np.abs(ctx.logits(tokens[60:].tolist(), 120) - exact).max() < ROUNDING


def test_what_is_empty_begins_anew(llama: tuple[Path, Any]) -> None:
    _, model = llama
    tokens = some_tokens(10).tolist()
    options: dict[str, Any] = {"n_seq_max": 3, "n_ctx": 3 * N_CTX}
    with Context(model, 1, GA_W, ga_n_max=GA_N_MAX, kv_unified=False, **options) as ctx:
        for seq in range(3):
            ctx.logits(tokens, seq=seq)
            assert ctx.set_group(seq, 4)
        assert ctx.remove(1, -1)
        assert [ctx.group(seq) for seq in range(3)] == [4, 1, 4]
        assert ctx.set_group(1, 2)  # of the text that comes
        assert ctx.remove(1, -1)  # nothing is removed
        assert [ctx.group(seq) for seq in range(3)] == [4, 2, 4]
        ctx.api.llama_memory_clear(ctx.memory, False)
        assert [ctx.group(seq) for seq in range(3)] == [1, 2, 1]
    with Context(model, 1, GA_W, ga_n_max=GA_N_MAX, kv_unified=True, **options) as ctx:
        ctx.logits(tokens, seq=1)
        assert ctx.set_group(2, 4)
        ctx.keep(1)
        assert ctx.group(1) == 4
        ctx.keep(0)
        assert ctx.group(1) == 1


#
# what cannot be done
#


def test_refusals(llama: tuple[Path, Any]) -> None:
    _, model = llama
    tokens = some_tokens(100).tolist()
    with Context(model, 1, 0, n_ctx=64) as ctx:
        assert ctx.group() == 0
        assert not ctx.set_group(0, 2)
        assert ctx.library.last_error() == "the context is a plain one, its sequences have no groups"
    with Context(model, 2, GA_W, n_ctx=112) as ctx:
        ctx.logits(tokens[:65])
        for seq, ga_n, reason in [
            (0, 1, "ga_n = 1 and ga_w = 16 reach 64 tokens, sequence 0 has 65"),
            (0, 0, "ga_n is 0, it must be at least 1"),
            (1, 2, "there is no sequence 1, n_seq_max is 1"),
            (-1, 2, "there is no sequence -1, n_seq_max is 1"),
        ]:
            assert not ctx.set_group(seq, ga_n)
            assert ctx.library.last_error() == reason
            assert ctx.group() == 2
        assert (ctx.group(-1), ctx.group(1)) == (0, 0)
        assert ctx.set_group(0, 2**32 - 1)
        assert ctx.library.last_error() == ""
        ctx.logits(tokens[65:66], 65)
    library = load()
    assert not library.set_next(4, 16, "auto", 3)
    assert library.last_error() == "ga_n_max is 3, it must be 0 or at least ga_n, 4"
    assert library.get_group(None) == 0
    assert not library.set_group(None, 0, 1)


def test_keys_that_cannot_be_turned(tmp_path: Path) -> None:
    """A norm with weights follows RoPE: the group of an empty sequence can be set, and stays."""
    path = architectures.make_tiny().make(tmp_path / "hunyuan.gguf", "hunyuan-dense", N_CTX_TRAIN)
    tokens = some_tokens(150)
    with (
        open_model(path) as model,
        Context(model, 1, GA_W, ga_n_max=GA_N_MAX, n_ctx=N_CTX, type_k=F32, type_v=F32) as ctx,
    ):
        ctx.logits(tokens[:60].tolist())
        assert not ctx.set_group(0, 4)
        assert ctx.library.last_error() == "the keys of this model cannot be turned to another group"
        assert ctx.decode([(int(token), 60 + i, 0) for i, token in enumerate(tokens[60:70])])[0] == 1
        assert ctx.pos_max() == 59
        assert ctx.remove(0, -1)
        assert ctx.set_group(0, 4)
        exact = CachedReference(path, 4, GA_W).extend(tokens)
        assert np.abs(ctx.logits(tokens.tolist()) - exact).max() < ROUNDING


def test_a_state_that_cannot_be_turned(tmp_path: Path) -> None:
    """To the group of other sequences in the same buffer."""
    path = architectures.make_tiny().make(tmp_path / "hunyuan.gguf", "hunyuan-dense", N_CTX_TRAIN)
    tokens = some_tokens(60).tolist()
    with (
        open_model(path) as model,
        Context(model, 1, GA_W, ga_n_max=GA_N_MAX, n_seq_max=2, kv_unified=True, n_ctx=2 * N_CTX) as ctx,
    ):
        ctx.set_group(0, 4)
        ctx.logits(tokens)
        data = ctx.save(0)
        assert ctx.remove(0, -1)
        ctx.logits(tokens[:10])
        assert not ctx.load(data, 1)
        assert ctx.library.last_error() == (
            "the state was saved with ga_n = 4, other sequences in the same buffer have ga_n = 1, and the keys of this "
            "model cannot be turned to another group"
        )
        assert (ctx.pos_max(0), ctx.pos_max(1), ctx.group()) == (9, -1, 1)
        assert ctx.load(data, 0)  # in the place of the others
        assert (ctx.pos_max(0), ctx.group()) == (59, 4)


@contextmanager
def aborting(ctx: Context) -> Iterator[list[bool]]:
    """A context whose computations end when the list has an element that is true."""
    is_over: list[bool] = []
    callback = ctx.api.ggml_abort_callback(lambda _: any(is_over))
    ctx.api.llama_set_abort_callback(ctx.ctx, callback, None)
    yield is_over
    ctx.api.llama_set_abort_callback(ctx.ctx, ctx.api.ggml_abort_callback(), None)


STREAMS: dict[str, Any] = {"n_seq_max": 2, "kv_unified": False, "n_ctx": 2 * N_CTX, "type_k": F32, "type_v": F32}


def test_a_change_that_is_interrupted(llama: tuple[Path, Any]) -> None:
    """What was being turned is lost, and said; it can be removed and evaluated again. What was not waits."""
    path, model = llama
    tokens = some_tokens(100)
    plain, turned = CachedReference(path, 1, GA_W), CachedReference(path, 1, GA_W)
    plain.extend(tokens[:50])
    turned.extend(tokens[:50])
    turned.ga_n = 4
    with (
        Context(model, 1, GA_W, ga_n_max=GA_N_MAX, n_ubatch=32, flash_attn_type=0, **STREAMS) as ctx,
        aborting(ctx) as is_over,
    ):
        for seq in (0, 1):
            ctx.logits(tokens[:50].tolist(), seq=seq)
            assert ctx.set_group(seq, 4)
        whole = ctx.save()
        assert ctx.load(whole)
        assert ctx.set_group(0, 2)
        assert ctx.set_group(1, 2)
        is_over.append(True)
        assert ctx.decode([(1, 50, 1)])[0] != 0  # nor is a sequence evaluated with keys that wait to be turned
        is_over.clear()
        assert ctx.decode([(1, 50, 0)])[0] == 1
        assert ctx.set_group(1, 4)
        exact = turned.extend(tokens[50:60])
        assert np.abs(ctx.logits(tokens[50:60].tolist(), 50, 1) - exact).max() < ROUNDING
        assert ctx.api.llama_state_seq_get_size(ctx.ctx, 0) == 0  # a state would not say that keys are lost
        assert ctx.api.llama_state_get_size(ctx.ctx) == 0
        assert ctx.api.llama_state_seq_get_size(ctx.ctx, 1) > 0
        assert ctx.remove(0, 5, 10)
        ctx.shift(0, 10, -1, -5)  # nor is what is lost turned further
        assert ctx.decode([(1, 45, 0)])[0] == 1
        assert ctx.remove(0, 4)  # and what is left of it is not made into a window
        ctx.library.apply_shifts(ctx.ctx)
        assert ctx.remove(0, -1)
        assert ctx.group() == 1
        exact = plain.extend(tokens[50:60])
        assert np.abs(ctx.logits(tokens[:60].tolist())[50:] - exact).max() < ROUNDING


def test_a_shift_that_is_interrupted_before_a_change(llama: tuple[Path, Any]) -> None:
    """The shift is carried out first, from the group of before, whenever that succeeds."""
    path, model = llama
    tokens = some_tokens(100)
    reference = CachedReference(path, 2, GA_W)
    reference.extend(tokens[:60])
    reference.remove(5, 25)
    reference.shift(25, 1 << 30, -20)
    reference.ga_n = 4
    with (
        Context(model, 2, GA_W, ga_n_max=GA_N_MAX, n_ubatch=512, flash_attn_type=0, **STREAMS) as ctx,
        aborting(ctx) as is_over,
    ):
        ctx.logits(tokens[:60].tolist())
        assert ctx.remove(0, 5, 25)
        ctx.shift(0, 25, -1, -20)
        assert ctx.set_group(0, 4)
        is_over.append(True)
        assert ctx.decode([(1, 40, 0)])[0] != 0
        is_over.clear()
        exact = reference.extend(tokens[60:])
        assert np.abs(ctx.logits(tokens[60:].tolist(), 40) - exact).max() < ROUNDING


def test_a_change_that_is_interrupted_beforehand(llama: tuple[Path, Any]) -> None:
    """When it was asked to be carried out at once: the next batch is refused as well."""
    _, model = llama
    tokens = some_tokens(50).tolist()
    with Context(model, 1, GA_W, ga_n_max=GA_N_MAX, n_ctx=N_CTX) as ctx, aborting(ctx) as is_over:
        ctx.logits(tokens)
        assert ctx.set_group(0, 4)
        is_over.append(True)
        ctx.library.apply_shifts(ctx.ctx)
        is_over.clear()
        assert ctx.decode([(1, 50, 0)])[0] == 1


def test_a_part_of_a_state_brings_no_group(tmp_path: Path) -> None:
    """That of the layers with a window alone, which checkpoints are made of."""
    with _opened("gemma3", tmp_path) as (_, model), Context(model, 1, GA_W, ga_n_max=GA_N_MAX, n_ctx=N_CTX) as ctx:
        ctx.logits(some_tokens(50).tolist())
        assert ctx.set_group(0, 4)
        data = ctx.save(0, flags=1)  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
        assert ctx.set_group(0, 2)
        assert ctx.load(data, 0, flags=1)
        assert ctx.group() == 2
        ctx.logits([1], 50)
