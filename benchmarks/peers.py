"""What stands for each metric and method of xaieval in the packages that are compared with it, from the installed packages.

    python benchmarks/peers.py [--page docs/peers.md]

looks up every name that the tables claim and fails if a package lacks it, so that the page cannot say what is not there. What a
package has and no table claims is listed, so that nothing is left out either. Without a page the tables are printed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import cyclopts

sys.path.insert(0, str(Path(__file__).parent))  # for page_tables
from page_tables import filled

import xaieval
from xaieval import metrics
from xaieval.explainers import LIBRARY_METHODS, METHODS
from xaieval.results.markdown import markdown_table

app = cyclopts.App(help=__doc__)


@dataclass(frozen=True)
class Package:
    """A package that is compared.

    Attributes:
        distribution: Its name in the package index.
        modules: Where its names are looked up; a name is an attribute of one of them, or of a class there after a dot.
        offers: Lists its metrics and methods.
        methods: The prefix of the names by which xaieval runs its methods; none if it has no methods of its own.
        other: Names that `offers` finds and that are no metrics or methods, or that have other names in xaieval.
    """

    distribution: str
    modules: tuple[str, ...]
    offers: Callable[[], Iterable[str]]
    methods: str = ""
    other: frozenset[str] = field(default=frozenset())

    def lacks(self, name: str) -> bool:
        """Whether none of the modules has the name."""
        return all(_found(importlib.import_module(module), name) is None for module in self.modules)


def of_grad_cam() -> Iterable[str]:
    """Classes of methods and metrics of pytorch-grad-cam, and its functions that make maps."""
    package = importlib.import_module("pytorch_grad_cam")
    yield from _public(package)
    yield from ("sobel_cam", "run_dff_on_image")
    for name in ("cam_mult_image", "perturbation_confidence", "road", "arcc"):
        yield from _own_classes(importlib.import_module(f"pytorch_grad_cam.metrics.{name}"))


def of_torch_cam() -> Iterable[str]:
    """Classes of methods and metrics of torch-cam."""
    for name in ("activation", "gradient"):
        yield from importlib.import_module(f"torchcam.methods.{name}").__all__
    yield from _own_classes(importlib.import_module("torchcam.metrics"))


def of_captum() -> Iterable[str]:
    """Classes of attributions, of inputs, layers, neurons and language models, and the functions of captum's metrics."""
    attr = importlib.import_module("captum.attr")
    bases = attr.Attribution.__module__
    for name in attr.__all__:
        one = getattr(attr, name)
        if inspect.isclass(one) and issubclass(one, attr.Attribution) and one.__module__ != bases:
            yield name
    yield from importlib.import_module("captum.metrics").__all__


def of_quantus() -> Iterable[str]:
    """The classes of metrics of Quantus."""
    available = importlib.import_module("quantus").AVAILABLE_METRICS
    yield from (kind.__name__ for family in available.values() for kind in family.values())


PACKAGES: Mapping[str, Package] = {
    "pytorch-grad-cam": Package(
        "grad-cam",
        (
            "pytorch_grad_cam",
            "pytorch_grad_cam.sobel_cam",
            "pytorch_grad_cam.metrics.cam_mult_image",
            "pytorch_grad_cam.metrics.perturbation_confidence",
            "pytorch_grad_cam.metrics.road",
            "pytorch_grad_cam.metrics.arcc",
        ),
        of_grad_cam,
        "pytorch-grad-cam",
        frozenset(
            (
                "AblationLayer",
                "AblationLayerFasterRCNN",
                "AblationLayerVit",
                "ActivationsAndGradients",
                "AveragerAcrossThresholds",
                "CamMultImageConfidenceChange",
                "NoisyLinearImputer",
                "RemoveLeastRelevantFirst",
                "RemoveMostRelevantFirst",
            )
        ),
    ),
    "torch-cam": Package("torchcam", ("torchcam.methods", "torchcam.metrics"), of_torch_cam, "torch-cam"),
    "captum": Package(
        "captum",
        ("captum.metrics", "captum.attr"),
        of_captum,
        "captum",
        frozenset(("DataLoaderAttribution", "LimeBase", "NoiseTunnel", "infidelity_perturb_func_decorator")),
    ),
    "Quantus": Package("quantus", ("quantus",), of_quantus),
}


@dataclass(frozen=True)
class Row:
    """Names of xaieval, and what stands for them in each package.

    Attributes:
        ours: Names of metrics or methods, or of functions of xaieval.
        theirs: By package, the names there.
        notes: By package, how it differs, in a few words.
    """

    ours: tuple[str, ...]
    theirs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


GRAD_CAM, TORCH_CAM, CAPTUM, QUANTUS = PACKAGES

OF_METRICS: tuple[Row, ...] = (
    Row(
        ("average_drop",),
        {GRAD_CAM: ("DropInConfidence",), TORCH_CAM: ("ClassificationMetric",)},
        {GRAD_CAM: "absolute, not divided by the confidence"},
    ),
    Row(("increase_in_confidence",), {GRAD_CAM: ("IncreaseInConfidence",), TORCH_CAM: ("ClassificationMetric",)}),
    Row(("average_gain", "drop_in_deletion", "confidence_ratio", "adcc")),
    Row(("coherency", "complexity"), {GRAD_CAM: ("Coherency", "Complexity")}),
    Row(("arcc",), {GRAD_CAM: ("ARCC",)}),
    Row(("insertion",), {TORCH_CAM: ("DeletionInsertionMetric",)}),
    Row(("deletion",), {TORCH_CAM: ("DeletionInsertionMetric",), QUANTUS: ("PixelFlipping",)}, {QUANTUS: "a curve by default"}),
    Row(
        ("morf", "lerf"),
        {GRAD_CAM: ("PerturbationConfidenceMetric",)},
        {GRAD_CAM: "at one share of the pixels"},
    ),
    Row(("region_perturbation",), {QUANTUS: ("RegionPerturbation",)}, {QUANTUS: "a curve"}),
    Row(("selectivity",), {QUANTUS: ("Selectivity",)}, {QUANTUS: "a curve"}),
    Row(("irof",), {QUANTUS: ("IROF",)}),
    Row(("symmetric_relevance_gain", "r_oms", "abpc")),
    Row(("sic", "aic")),
    Row(("road",), {GRAD_CAM: ("ROADCombined",)}),
    Row(
        ("road_morf",),
        {GRAD_CAM: ("ROADMostRelevantFirst", "ROADMostRelevantFirstAverage"), QUANTUS: ("ROAD",)},
        {QUANTUS: "accuracies"},
    ),
    Row(("road_lerf",), {GRAD_CAM: ("ROADLeastRelevantFirst", "ROADLeastRelevantFirstAverage")}),
    Row(("faithfulness_correlation",), {QUANTUS: ("FaithfulnessCorrelation",)}),
    Row(("faithfulness_estimate",), {QUANTUS: ("FaithfulnessEstimate",)}),
    Row(("sensitivity_n",), {QUANTUS: ("SensitivityN",)}, {QUANTUS: "another number"}),
    Row(("mu_fidelity", "saco")),
    Row(("monotonicity",), {QUANTUS: ("Monotonicity",)}, {QUANTUS: "yes or no"}),
    Row(("monotonicity_correlation",), {QUANTUS: ("MonotonicityCorrelation",)}),
    Row(("sufficiency",), {QUANTUS: ("Sufficiency",)}),
    Row(("infidelity",), {CAPTUM: ("infidelity",), QUANTUS: ("Infidelity",)}, {CAPTUM: "of any input"}),
    Row(("max_sensitivity",), {CAPTUM: ("sensitivity_max",), QUANTUS: ("MaxSensitivity",)}, {CAPTUM: "of any input"}),
    Row(("average_sensitivity",), {QUANTUS: ("AvgSensitivity",)}),
    Row(("local_lipschitz",), {QUANTUS: ("LocalLipschitzEstimate",)}),
    Row(("continuity",), {QUANTUS: ("Continuity",)}),
    Row(("consistency",), {QUANTUS: ("Consistency",)}),
    Row(("relative_input_stability",), {QUANTUS: ("RelativeInputStability",)}),
    Row(("relative_output_stability",), {QUANTUS: ("RelativeOutputStability",)}),
    Row(("relative_representation_stability",), {QUANTUS: ("RelativeRepresentationStability",)}),
    Row(("stability_shift", "stability_flip")),
    Row(("random_logit",), {QUANTUS: ("RandomLogit",)}),
    Row(("mprt", "sanity_check"), {QUANTUS: ("MPRT",)}),
    Row(("smooth_mprt", "efficient_mprt"), {QUANTUS: ("SmoothMPRT", "EfficientMPRT")}),
    Row(("pointing_game",), {QUANTUS: ("PointingGame",)}),
    Row(
        ("energy_pointing_game", "attribution_localisation"),
        {QUANTUS: ("AttributionLocalisation",)},
    ),
    Row(("relevance_mass_accuracy",), {QUANTUS: ("RelevanceMassAccuracy", "Focus")}, {QUANTUS: "`Focus` on mosaics"}),
    Row(("relevance_rank_accuracy",), {QUANTUS: ("RelevanceRankAccuracy",)}),
    Row(("top_k_intersection",), {QUANTUS: ("TopKIntersection",)}),
    Row(("roc_auc",), {QUANTUS: ("AUC",)}),
    Row(("average_precision", "pixel_average_precision", "two_class_average_precision")),
    Row(("iou", "best_iou", "f1", "best_f1", "mean_iou", "pixel_accuracy", "box_accuracy")),
    Row(("sparseness",), {QUANTUS: ("Sparseness",)}),
    Row(("entropy",), {QUANTUS: ("Complexity",)}),
    Row(("effective_complexity",)),
    Row(("attributed_area",), {QUANTUS: ("EffectiveComplexity",)}, {QUANTUS: "a count of pixels"}),
    Row(("area_above_half", "center_x", "center_y")),
    Row(
        ("completeness",),
        {CAPTUM: ("IntegratedGradients.compute_convergence_delta",), QUANTUS: ("Completeness",)},
        {CAPTUM: "of its own methods that have it", QUANTUS: "yes or no"},
    ),
    Row(("non_sensitivity",), {QUANTUS: ("NonSensitivity",)}, {QUANTUS: "a count of pixels"}),
    Row(("input_invariance",), {QUANTUS: ("InputInvariance",)}, {QUANTUS: "yes or no"}),
    Row(("feature_agreement", "rank_agreement", "sign_agreement", "signed_rank_agreement")),
)

OF_METHODS: tuple[Row, ...] = (
    Row(("gradcam",), {GRAD_CAM: ("GradCAM",), TORCH_CAM: ("GradCAM",), CAPTUM: ("LayerGradCam",)}),
    Row(("gradcam++",), {GRAD_CAM: ("GradCAMPlusPlus",), TORCH_CAM: ("GradCAMpp",)}),
    Row(("xgradcam",), {GRAD_CAM: ("XGradCAM",), TORCH_CAM: ("XGradCAM",)}),
    Row(("hirescam",), {GRAD_CAM: ("HiResCAM",), CAPTUM: ("LayerGradientXActivation",)}, {CAPTUM: "one map for each channel"}),
    Row(("layercam",), {GRAD_CAM: ("LayerCAM",), TORCH_CAM: ("LayerCAM",)}),
    Row(("eigencam", "eigengradcam"), {GRAD_CAM: ("EigenCAM", "EigenGradCAM")}),
    Row(("elementwise-gradcam",), {GRAD_CAM: ("GradCAMElementWise",)}),
    Row(("cam",), {TORCH_CAM: ("CAM",)}),
    Row(("gscorecam", "maskclip", "clip-surgery")),
    Row(("score-cam",), {GRAD_CAM: ("ScoreCAM",), TORCH_CAM: ("ScoreCAM",)}),
    Row(("ablation-cam",), {GRAD_CAM: ("AblationCAM",)}),
    Row(("layercam-fusion",), {TORCH_CAM: ("LayerCAM.fuse_cams",)}),
    Row(("recipro-cam", "opti-cam", "poly-cam")),
    Row(("expected-gradients",), {CAPTUM: ("GradientShap",)}),
    Row(("guided-ig", "blur-ig", "xrai")),
    Row(("rise", "sobol", "hsic", "extremal-perturbation")),
    Row(("occlusion",), {CAPTUM: ("Occlusion",)}),
    Row(("attention-rollout", "raw-attention", "attention")),
    Row(("legrad",), {TORCH_CAM: ("LeGrad",)}, {TORCH_CAM: "of torchvision's transformers"}),
    Row(("generic-attention", "gradient-rollout", "transformer-attribution", "attn-lrp", "grad-eclip")),
    Row(("d-rise", "d-close", "odam", "ssgrad-cam", "g-came")),
    Row(("edges",), {GRAD_CAM: ("sobel_cam",)}),
    Row(("random",), {GRAD_CAM: ("RandomCAM",)}, {GRAD_CAM: "random weights of the channels"}),
    Row(("uniform", "center", "fake-cam")),
)

MANY = ("Neuron", "LLM", "RemoteLLM")  # families of captum, for units inside the model and for language models


@app.default
def main(page: Path | None = None) -> None:
    """Make the tables.

    Args:
        page: Page whose tables are replaced, docs/peers.md. Default: they are printed.
    """
    made = tables()
    if page is None:
        print("\n\n".join("\n".join(lines()) for lines in made.values()))
    else:
        page.write_text(filled(page.read_text(), made))


def tables() -> dict[str, Callable[[], list[str]]]:
    """By name, what makes the lines of each table; names that a package lacks are an error before any is made."""
    check_names(OF_METRICS + OF_METHODS)
    return {
        "versions": lambda: _lines(("package", "version", "metrics", "methods"), _versions()),
        "metrics": lambda: _table(OF_METRICS, PACKAGES),
        "methods": lambda: _table(OF_METHODS, [name for name, package in PACKAGES.items() if package.methods]),
        "left out": lambda: _lines(("package", "has, and xaieval has not by name"), _left_out()),
    }


def check_names(rows: Iterable[Row]) -> None:
    """Look up each name that the rows claim.

    Raises:
        ValueError: A package lacks some of them.
    """
    wrong = [
        f"{package} {_version(package)} has no {name} (the row of {', '.join(row.ours)})"
        for row in rows
        for package, names in row.theirs.items()
        for name in names
        if PACKAGES[package].lacks(name)
    ]
    if wrong:
        raise ValueError("\n".join(["correct the tables of benchmarks/peers.py:", *wrong]))


def unknown_of_ours() -> list[str]:
    """Names that the tables take for ours and that xaieval lacks."""
    known = {*metrics.METRICS, *METHODS, *metrics.__all__, *xaieval.__all__}
    return [name for row in OF_METRICS + OF_METHODS for name in row.ours if name not in known]


def not_in_the_tables() -> list[str]:
    """Metrics and methods of xaieval that no table has."""
    named = {name for row in OF_METRICS + OF_METHODS for name in row.ours}
    return [name for name in (*metrics.METRICS, *METHODS) if name not in named]


def left_out(package: str) -> list[str]:
    """What a package offers, and xaieval has neither of its own nor by the name of the package."""
    has = PACKAGES[package]
    claimed = {name.split(".")[0] for row in OF_METRICS + OF_METHODS for name in row.theirs.get(package, ())}
    known = claimed | set(_runs(has)) | has.other
    return sorted({name for name in has.offers() if name not in known})


def _runs(package: Package) -> list[str]:
    return [name.split(":")[1] for name in LIBRARY_METHODS if name.startswith(f"{package.methods}:")] if package.methods else []


def _versions() -> Iterable[tuple[object, ...]]:
    for name, package in PACKAGES.items():
        claimed = [{one for row in rows for one in row.theirs.get(name, ())} for rows in (OF_METRICS, OF_METHODS)]
        methods = len({*claimed[1], *_runs(package)})
        yield name, f"{package.distribution} {_version(name)}", len(claimed[0]) or "none", methods or "none of its own"


def _left_out() -> Iterable[tuple[str, str]]:
    for name in PACKAGES:
        names = left_out(name)
        single = [one for one in names if not one.startswith(MANY)]
        counts = {kind: sum(one.startswith(kind) for one in names) for kind in MANY}
        many = [f"`{kind}...` ({count})" for kind, count in counts.items() if count]
        yield name, ", ".join([_code(single), *many] if single else many) or "nothing"


def _table(rows: Iterable[Row], packages: Iterable[str]) -> list[str]:
    names = list(packages)
    return _lines(("xaieval", *names), ([_code(row.ours), *(_cell(row, name) for name in names)] for row in rows))


def _cell(row: Row, package: str) -> str:
    shown = _code(row.theirs.get(package, ())) or "no"
    return f"{shown}: {row.notes[package]}" if package in row.notes else shown


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _lines(titles: Iterable[object], rows: Iterable[Iterable[object]]) -> list[str]:
    return markdown_table(titles, rows).splitlines()


def _version(package: str) -> str:
    return importlib.metadata.version(PACKAGES[package].distribution)


def _found(where: ModuleType, name: str) -> Any:
    found: Any = where
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _public(package: ModuleType) -> list[str]:
    """Classes and functions that a package shows of its own modules."""
    return [
        name
        for name, one in vars(package).items()
        if (inspect.isclass(one) or inspect.isfunction(one)) and one.__module__.startswith(package.__name__)
    ]


def _own_classes(module: ModuleType) -> list[str]:
    return [
        name
        for name, one in vars(module).items()
        if inspect.isclass(one) and one.__module__ == module.__name__ and not name.startswith("_")
    ]


if __name__ == "__main__":
    app()
