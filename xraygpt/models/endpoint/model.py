"""A model behind an OpenAI-compatible address, for evaluation and prediction."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from xraygpt.common.checks import Checks
from xraygpt.common.project_paths import ProjectPath
from xraygpt.common.registry import registry
from xraygpt.common.requirements import Missing
from xraygpt.curation.llm.endpoint import (
    LOCAL_URL,
    NO_KEY,
    NOT_INSTALLED,
    is_loopback,
    url_problem,
)
from xraygpt.curation.llm.limits import Limits, RetryPolicy
from xraygpt.curation.llm.prices import Price
from xraygpt.datasets.base import Batch
from xraygpt.models.base import BaseModel, Bonus, Generation
from xraygpt.models.endpoint.journal import Journal
from xraygpt.models.endpoint.messages import MessageRenderer, read_messages
from xraygpt.models.endpoint.pictures import PictureCollator, PictureFormat, read_pictures
from xraygpt.models.endpoint.requests import (
    OWN_FIELDS,
    Question,
    RequestFormat,
    decoding_fields,
    refuse_settings,
)
from xraygpt.models.endpoint.session import Session
from xraygpt.models.remote import RemoteModel
from xraygpt.processors.image import ImageSpec
from xraygpt.prompting.renderer import load_prompts

_SECRET_FIELDS = ("api_key", "apikey", "api-key", "authorization", "token", "password")


@registry.register_model("openai_endpoint")
class OpenAIEndpoint(RemoteModel):
    """Sends questions and images to a server and returns its answers."""

    @dataclass(kw_only=True)
    class Config(BaseModel.Config):
        """The server, what is sent to it, and the limits of a run."""

        base_url: str = LOCAL_URL
        """Address of the server, usually ending in /v1."""
        model: str = ""
        """Name of the model at the server."""
        api_key_env: str | None = None
        """Name of the environment variable that contains the key; null for a server without one.
        The key itself is never written anywhere."""
        public_data: bool = False
        """Confirms that all images and questions are public data. This or an agreement is required
        for any server except this machine."""
        zero_retention_agreement: str = ""
        """Reference to your written zero-retention agreement with the provider, which allows other
        data to be sent (https only). It is not verified; it is recorded with the results."""
        system: str = ""
        """System message for samples that have none."""
        prompt_path: ProjectPath | None = None
        """File of questions, one per line, for samples without one; evaluation uses the first."""
        image: PictureFormat = field(default_factory=PictureFormat)
        """How images are sent."""
        token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
        """Request field for the maximum length of an answer, which OpenAI's reasoning models call
        `max_completion_tokens`."""
        extra: dict[str, Any] = field(default_factory=dict)
        """Further request fields, such as `{seed: 1}` or vLLM's `{repetition_penalty: 1.1}`."""
        omit: list[str] = field(default_factory=list)
        """Request fields not to send, such as `[temperature]`."""
        limits: Limits = field(default_factory=Limits)
        """Concurrency (at most `run.batch_size_eval`), limits per minute, and the budget of all
        runs on a result folder."""
        retries: RetryPolicy = field(default_factory=RetryPolicy)
        """How failed requests are repeated."""
        price: Price | None = None
        """Price per million tokens, `{input: 2.5, output: 10}`, which `limits.max_cost` needs."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                refuse = check.refuse
                refuse(not self.model, "model", "name the model at the server")
                no_weights = "the weights are at the server; remove it"
                refuse(self.ckpt is not None, "ckpt", no_weights)
                check.at_least(1, "limits.concurrency", "retries.max_attempts")
                check.above(0, "retries.timeout", "limits.rpm", "limits.tpm")
                why = "needs price, per million tokens"
                unpriced = self.limits.max_cost is not None and self.price is None
                refuse(unpriced, "limits.max_cost", why, "price")
                for name in self.extra:
                    refuse(name in OWN_FIELDS, f"extra.{name}", "is set by other keys")
                    secret = name.lower() in _SECRET_FIELDS
                    refuse(secret, f"extra.{name}", "keys are read from api_key_env only")
                needed = {"model", "messages"} & set(self.omit)
                refuse(needed, "omit", f"{', '.join(sorted(needed))} cannot be omitted")
                self._check_address(check)

        def _check_address(self, check: Checks) -> None:
            problem = url_problem(self.base_url)
            if not problem and (urlsplit(self.base_url).query or urlsplit(self.base_url).fragment):
                problem = "must not contain a query (?…) or a fragment (#…)"
            check.refuse(problem, "base_url", problem)
            if problem or is_loopback(self.base_url) or self.public_data:
                return
            url = urlsplit(self.base_url)
            check.refuse(
                not self.zero_retention_agreement.strip(),
                "base_url",
                f"images and questions would be sent to {url.hostname}. Serve the model on this "
                "machine, or set public_data: true if all of them are public, or name your written "
                "zero-retention agreement in zero_retention_agreement",
            )
            plain = self.zero_retention_agreement.strip() and url.scheme != "https"
            check.refuse(plain, "base_url", f"{self.base_url} is not encrypted; use https")

        def missing(self, where: str) -> list[Missing]:
            """List the SDK and the key if they are missing, and missing files."""
            found = super().missing(where)
            if importlib.util.find_spec("openai") is None:
                problem, _, remedy = NOT_INSTALLED.partition("; ")
                found.append(Missing(f"{where}.arch", problem, remedy))
            name = self.api_key_env
            if name and not os.environ.get(name):
                problem = f"the environment variable {name} is not set"
                remedy = f"export {name}=…, or set api_key_env: null for a server without a key"
                found.append(Missing(f"{where}.api_key_env", problem, remedy))
            return found

        def identity(self) -> dict[str, Any]:
            """Return the settings without those that do not affect answers, such as limits."""
            operational = ("limits", "retries", "price", "api_key_env")
            return {k: v for k, v in super().identity().items() if k not in operational}

    config: Config
    context_len = 2**31  # characters; only the server knows its limit in tokens
    unsupported: Mapping[str, str] = {
        "chat": "it runs on a server, which you can chat with directly",
        "loss": "a server returns texts, but neither likelihoods of given answers nor weights",
    }

    def __init__(self, config: Config, **_: Any) -> None:
        super().__init__(config)
        is_local = is_loopback(config.base_url)
        prompts = load_prompts(config.prompt_path)
        self.renderer = MessageRenderer(prompts, config.system)
        self.media_collator = PictureCollator(config.image.max_frames, not is_local)
        self.image_spec = ImageSpec(
            image_size=config.image.max_side,
            mean=(0.0,),
            std=(1.0,),
            tokens_per_image=1,
            processor="display_image",
        )
        self._form = RequestFormat(
            config.base_url.rstrip("/"),
            config.model,
            config.token_limit,
            config.extra,
            config.omit,
            config.image,
        )
        key = os.environ.get(config.api_key_env or "") or NO_KEY
        self._session = Session(self._form, key, config.limits, config.retries, config.price)

    def check_generation(self, generation: Generation) -> None:
        """Refuse decoding settings that an endpoint cannot honour.

        Raises:
            InputError: The message names the settings.
        """
        refuse_settings(generation)

    def keep_answers(self, folder: Path) -> None:
        """Store each answer in a result folder on arrival, and reuse those of earlier commands."""
        self._session.use_journal(Journal(folder))

    def generate(
        self, batch: Batch, generation: Generation, bonus: Bonus | None = None
    ) -> list[str]:
        """Answer each row by a request; requests are concurrent.

        Raises:
            EndpointError: The endpoint cannot be used, or the budget is used up.
            DataError: A sample has no answer, such as one that exceeds the model's context.
        """
        decoding = decoding_fields(generation, self.config.token_limit)
        media = read_pictures(batch)
        questions = [
            Question(name, messages, media)
            for name, messages in zip(batch["sample_id"], read_messages(batch), strict=True)
        ]
        return self._session.answer(questions, decoding, generation.max_new_tokens)

    def facts(self) -> dict[str, str]:
        """Return the model's name and its host."""
        return {"model": self.config.model, "host": str(urlsplit(self.config.base_url).hostname)}
