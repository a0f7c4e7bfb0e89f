"""``SelfExtendLM``: the interface of lm-evaluation-harness, answered by ``eval.model``.

What their documentation leaves to a model is as in their ``hf`` model, so that numbers can be compared: a request that
is longer than the context loses its beginning, with a warning; an answer's prompt leaves room for the longest answer;
special tokens in a text count. One thing differs where a tokenizer puts a token before each text: a rolling log
likelihood is that of the text alone, as their documentation says, without the token's own.
"""

from __future__ import annotations

import hashlib
import logging
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from lm_eval.api.model import TemplateLM  # type: ignore[import-untyped]
from lm_eval.api.registry import register_model  # type: ignore[import-untyped]
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # type: ignore[import-untyped]
from tqdm import tqdm  # type: ignore[import-untyped]

from ..config import AUTO, SETTING_MAX, SelfExtendConfig, integer
from ..errors import EvalError, SettingError
from ..eval.cases import Tokens
from ..eval.model import EvalModel
from ..eval.settings import Rope, Setting
from ..eval.sharing import n_read
from ..groups import default_ga_w
from .chat import apply_template, template_of
from .generation import Generation
from .ordering import Step, plan_steps

__all__ = ["SelfExtendLM"]

logger = logging.getLogger("lm_eval.pyselfextend")  # below theirs: shown as they show their own

#: The longest answer where a task does not say it, as in their ``hf`` model.
MAX_GEN_TOKS = 256

#: What ``TemplateLM`` makes of a request: its texts, None for a part of a longer one, and their tokens.
Encoded = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("pyselfextend")
class SelfExtendLM(TemplateLM):  # type: ignore[misc]
    """A GGUF model that reads beyond its trained window.

    Args:
        path: the GGUF file.
        setting: how: ``plain``, ``auto``, ``auto:W``, ``G:W``, ``yarn``, ``linear`` or ``ntk``, the last three with a
            factor (``yarn:2``) or as much as ``n_ctx`` needs. None: ``ga_n`` and ``ga_w`` say it.
        ga_n: group size; 1 is the plain model, "auto" follows the length of each request.
        ga_w: neighbour window in tokens. None: an eighth of the trained window, at most 2048.
        n_ctx: context in tokens: the most that the model is given at once. None: all that the setting reaches, which is
            the trained window for the plain model, and for "auto", which has no limit of its own. It takes its memory
            when the model is opened.
        type_k, type_v: types of the cache, such as ``F16`` and ``Q8_0``.
        n_threads: None for llama_cpp's default.
        n_gpu_layers: layers on a device; -1 for all.
        flash_attn: llama.cpp's flash attention; a quantized V needs it.
        max_gen_toks: the longest answer, in tokens, where a task does not say it.
        add_bos_token: whether a beginning-of-sequence token stands before each text. None: as the model wants it.
        batch_size, max_batch_size, device: without effect, but their command line always gives them. Requests are
            evaluated one by one, and layers go to a device with ``n_gpu_layers``.

    Raises:
        ModelFileError: the file is not a model that llama.cpp can load.
        SettingError: a value is not allowed, by itself or for this model.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        setting: str | None = None,
        ga_n: int | Literal["auto"] = 1,
        ga_w: int | None = None,
        n_ctx: int | None = None,
        type_k: str = "F16",
        type_v: str = "F16",
        n_threads: int | None = None,
        n_gpu_layers: int = 0,
        flash_attn: bool = True,
        max_gen_toks: int = MAX_GEN_TOKS,
        add_bos_token: bool | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        self.path = Path(path).expanduser()
        self.max_gen_toks = integer("max_gen_toks", max_gen_toks, 1, SETTING_MAX)
        self._rope = rope = Rope.of(self.path)
        asked = _setting(setting, ga_n, ga_w, rope)
        reach = asked.n_ctx_max(rope)
        if n_ctx is None:
            n_ctx = reach or round(rope.n_ctx_train * (asked.factor or 1))
        n_ctx = integer("n_ctx", n_ctx, 2, SETTING_MAX - 1)
        self.setting = asked.resolve(rope, n_ctx)
        # One more than the model is given at once: of a request's last token only the probability is asked for.
        n_ctx_open = min(n_ctx + 1, max(reach, n_ctx)) if reach else n_ctx + 1
        self._model = EvalModel(
            self.path, self.setting, rope, n_ctx_open,
            type_k=type_k, type_v=type_v, n_threads=n_threads, n_gpu_layers=n_gpu_layers, flash_attn=flash_attn,
        )  # fmt: skip
        self._close = weakref.finalize(self, self._model.close)  # they never close a model
        self.max_length = min(n_ctx, n_ctx_open - 1)
        self._llm = self._model._llm
        self._tokenizer = self._model.tokenizer(chat=False)
        self._add_bos = bool(self._tokenizer.bos) if add_bos_token is None else add_bos_token
        if self._add_bos and self._llm.token_bos() < 0:
            raise SettingError(f"{self.path} has no beginning-of-sequence token; leave add_bos_token out")
        self._info = {
            "model_file": self.path.name,
            "model_num_parameters": int(self._llm._model.n_params()),
            "setting": str(self.setting),
            "n_ctx": self.max_length,
            "n_ctx_train": rope.n_ctx_train,
            "type_k": type_k.upper(),
            "type_v": type_v.upper(),
        }

    def close(self) -> None:
        """Free the model. Closing twice is fine."""
        self._close()

    # -- texts and tokens

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self._llm.token_eos())

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it: the beginning-of-sequence token, if there is one."""
        bos = int(self._llm.token_bos())
        return bos if bos >= 0 else self.eot_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The tokens of a text in which special tokens count.

        Args:
            string: the text.
            add_special_tokens: whether the token that the model wants before a text stands there. None: unless the text
                begins with it.
        """
        tokens = self._tokenizer.special(string)
        bos = (self.prefix_token_id,) if self._add_bos else ()
        if add_special_tokens is None and tokens[:1] == bos:
            return list(tokens)
        return list(tokens if add_special_tokens is False else bos + tokens)

    @property
    def tokenizer_name(self) -> str:
        """What cached requests are kept under: the file and its chat template."""
        return f"{self.path.stem}-{hashlib.sha256(template_of(self._llm).encode()).hexdigest()[:8]}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's own chat template, or None for False.

        Raises:
            EvalError: it has none, or another one is named.
        """
        if isinstance(chat_template, str):
            raise EvalError(f"the chat template {chat_template!r} was asked for; only the model's own can be used")
        return template_of(self._llm) if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """A conversation as the model's template writes it; see ``chat.apply_template``."""
        return apply_template(self._llm, chat_history, add_generation_prompt)

    def get_model_info(self) -> dict[str, Any]:
        """What is written beside results: the file, the setting, the context, the cache."""
        from .. import __version__

        return {**self._info, "pyselfextend_version": __version__}

    # -- requests

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """The log probability of each continuation, and whether it is the greedy one."""
        pairs = [self._fit(*request) for request in requests]
        self._warn_of_cuts([len(a) + len(b) - 1 for _, a, b in requests], [self.max_length] * len(requests))
        found: dict[int, tuple[float, bool]] = {}

        def ask(step: Step) -> None:
            prompt, continuation = pairs[step.index]
            log_probs = self._model.log_probs(prompt, continuation, step.n_keep, step.again)
            found[step.index] = float(log_probs.values.sum()), bool(log_probs.greedy.all())
            text = requests[step.index][0]
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, found[step.index])

        groups = [self._group(n_read(len(prompt), n_scored=len(continuation))) for prompt, continuation in pairs]
        steps = plan_steps([prompt for prompt, _ in pairs], groups, lambda i: pairs[i][1])
        self._go_through(steps, lambda i: len(pairs[i][1]) - 1, ask, "loglikelihood", disable_tqdm)
        return [found[i] for i in range(len(requests))]

    def _fit(self, text: tuple[str, str] | None, context: list[int], continuation: list[int]) -> tuple[Tokens, Tokens]:
        """What is left of a request: all but the last token of the continuation are given to the model."""
        if not continuation:
            raise EvalError(
                f"a continuation has no token of its own, its end merges with what stands before it: {text!r}"
            )
        if len(continuation) > self.max_length:
            raise EvalError(
                f"a continuation has {len(continuation)} tokens, the context {self.max_length}; give a larger n_ctx"
            )
        tokens = (*context, *continuation)[-(self.max_length + 1) :]
        return tokens[: -len(continuation)], tokens[-len(continuation) :]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log probability of each text, in windows of ``max_length`` tokens: each token is predicted once."""
        parts: list[Encoded] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            (string,) = request.args
            tokens = self.tok_encode(string, add_special_tokens=False)
            windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            for context, continuation in map(make_disjoint_window, windows):
                parts.append((None, context, continuation))
                owners.append(i)
        totals = [0.0] * len(requests)
        for i, (value, _) in zip(owners, self._loglikelihood_tokens(parts, disable_tqdm), strict=True):
            totals[i] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The greedy answer to each prompt, up to the first text in ``until``.

        Raises:
            EvalError: a task asks for samples, or for answers that leave no room for a prompt.
        """
        generations = [Generation.of(request.args[1], self.max_gen_toks) for request in requests]
        texts = [self.tok_encode(request.args[0]) or [self.prefix_token_id] for request in requests]
        prompts = []
        for generation, tokens in zip(generations, texts, strict=True):
            n_room = self.max_length - generation.max_gen_toks
            if n_room <= 0:
                raise EvalError(
                    f"answers of {generation.max_gen_toks} tokens leave no room for a prompt in a context of "
                    f"{self.max_length}; give a larger n_ctx, or a smaller max_gen_toks"
                )
            prompts.append(tuple(tokens[-n_room:]))
        self._warn_of_cuts([len(tokens) for tokens in texts], [len(prompt) for prompt in prompts])
        found: dict[int, str] = {}

        def ask(step: Step) -> None:
            generation = generations[step.index]
            prompt = prompts[step.index]
            found[step.index] = self._model.answer(prompt, generation.max_gen_toks, generation.until, step.n_keep).text
            self.cache_hook.add_partial("generate_until", requests[step.index].args, found[step.index])

        groups = [
            self._group(n_read(len(prompt), generation.max_gen_toks))
            for prompt, generation in zip(prompts, generations, strict=True)
        ]
        steps = plan_steps(prompts, groups, lambda i: ())
        self._go_through(steps, lambda i: generations[i].max_gen_toks, ask, "generate_until", disable_tqdm)
        return [found[i] for i in range(len(requests))]

    def _group(self, n_tokens: int) -> int:
        return self.setting.group(self._rope, n_tokens)

    def _warn_of_cuts(self, asked: Sequence[int], left: Sequence[int]) -> None:
        """Given the tokens that requests ask to evaluate, and those that are left of each at most."""
        cut = [n - n_left for n, n_left in zip(asked, left, strict=True) if n > n_left]
        if cut:
            logger.warning(
                "%d of %d requests are longer than the context of %d tokens: they lose their first ones, up to %d",
                len(cut), len(asked), self.max_length, max(cut),
            )  # fmt: skip

    def _go_through(
        self, steps: Sequence[Step], n_more: Callable[[int], int], ask: Callable[[Step], None], kind: str, quiet: bool
    ) -> None:
        """Ask in the order of the steps, with a progress bar over the tokens that are evaluated."""
        expected = [step.n_read + n_more(step.index) for step in steps]
        with tqdm(
            total=sum(expected), unit="tok", unit_scale=True, desc=f"Running {kind} requests", disable=quiet
        ) as bar:

            def advance(n_tokens: int, n_past: int) -> None:
                bar.update(n_tokens)

            self._model.progress = advance
            try:
                done = 0
                for step, n_tokens in zip(steps, expected, strict=True):
                    ask(step)
                    done += n_tokens
                    bar.update(done - bar.n)  # an answer may end early, a prompt be read once more
            finally:
                self._model.progress = None


def _setting(setting: str | None, ga_n: int | Literal["auto"], ga_w: int | None, rope: Rope) -> Setting:
    """What is asked for, in one of two ways."""
    config = SelfExtendConfig(ga_n, ga_w)
    if setting is not None:
        if not config.is_plain or ga_w is not None:
            raise SettingError(f"the setting is {setting!r}, and ga_n or ga_w are given too; give one or the other")
        return Setting.parse(setting)
    if config.is_plain:
        return Setting("plain")
    ga_w = default_ga_w(rope.n_ctx_train) if config.ga_w is None else config.ga_w
    return Setting("auto", ga_w=ga_w) if config.ga_n == AUTO else Setting("pair", int(config.ga_n), ga_w)
