"""The configuration of a run: every option with its type, range, default and meaning.

A YAML file overrides the defaults, and ``--set section.key=value`` overrides the file. An unknown key is an error that
names the nearest known key, so a typing error never silently means the default.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from schemas.backbones import family_nodes, family_pooling
from schemas.credentials import redacted
from schemas.errors import ConfigError
from schemas.option_types import Colour, ColourScale, CommaList, OptionalCount, OptionalText, WebAddress, split_commas

Condition = Literal["contamination", "positions", "kinds", "poses", "images", "power", "purity"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class InputConfig(_Section):
    """Which files are inputs, how they are grouped, and what is refused."""

    group_by: OptionalText = Field(
        None,
        description="Path template such as `{line}/{camera}/**`; the named parts, joined by `/`, are the group. "
        "Not set: the `group` column of an index, else one group.",
    )
    extensions: CommaList = Field(
        ("png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp"),
        description="Extensions of the files to take from a folder; other files become `skipped` rows. "
        "An index names its files itself and is not filtered.",
    )
    roots: CommaList = Field(
        (),
        description="Folders and URLs that images may lie in besides the source's own folder, after following links; "
        "rows that lead elsewhere are `skipped`. `any` removes the limit: use it only if nobody else can write into "
        "the source.",
    )
    max_pixels: int = Field(
        89_478_485, ge=1, description="Largest width x height to decode; larger images are unreadable."
    )
    sixteen_bit_white: int = Field(
        65535, ge=1, le=65535, description="The value in a 16-bit grey image that means white; 4095 for 12-bit cameras."
    )
    decode_timeout_s: float = Field(
        60.0,
        gt=0,
        description="How long one image may take to decode, not counting the read; a slower image is unreadable.",
    )
    max_unreadable_fraction: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Failure budget: the run ends with exit code 3 if a larger share of the images is unreadable.",
    )


class FeaturesConfig(_Section):
    """The backbone and how its outputs become patch features (paper, section 3.1)."""

    backbone: str = Field(
        "wide_resnet50_2",
        description="A torchvision classification model by name, else one of timm's (extra `timm`). `timm/NAME` is "
        "timm's also where torchvision has the name ([backbones](backbones.md)).",
    )
    nodes: CommaList = Field(
        default_factory=lambda options: family_nodes(options["backbone"]),
        description="Outputs to concatenate, resized to the grid of the first (Eqs. 1-2). Not set: those of the "
        "backbone's family, `layer1,layer2,layer3` of ResNets ([nodes](backbones.md#nodes)).",
    )
    weights: str = Field(
        "imagenet",
        min_length=1,
        description="`imagenet` (torchvision's IMAGENET1K_V1, as in the paper, or timm's own; downloaded once), the "
        "path or URL of a state dict or of a safetensors file, or `random`.",
    )
    mean: Colour = Field(
        None,
        description="Red, green and blue that are subtracted from pixels in 0..1. Not set: the mean in the model's own "
        "configuration.",
    )
    std: ColourScale = Field(
        None,
        description="Red, green and blue that pixels are then divided by. Not set: the deviation in the model's own "
        "configuration.",
    )
    channels: OptionalCount = Field(
        None,
        ge=1,
        description="Number of channels to draw at random with `features.seed`, the same at all positions, as in "
        "PaDiM (100 of `resnet18`'s 448, 550 of `wide_resnet50_2`'s 1792). Not set: all channels.",
    )
    seed: int = Field(0, ge=0, description="Seed of `random` weights and of the draw of `features.channels`.")
    image_size: int = Field(
        256, ge=32, le=4096, description="Side in pixels of the square that every image is resized to."
    )
    pool_kernel: OptionalCount = Field(
        default_factory=lambda options: family_pooling(options["backbone"])[0],
        ge=1,
        description="k: average-pooling kernel on the first node's grid (Eq. 3). Not set: 10, or for the tokens of a "
        "transformer as large a share of the image as 10 of 64 cells.",
    )
    pool_stride: OptionalCount = Field(
        default_factory=lambda options: family_pooling(options["backbone"])[1],
        ge=1,
        description="s: average-pooling stride on the first node's grid (Eq. 3). Not set: 4, or for the tokens of a "
        "transformer as large a share of the image as 4 of 64 cells.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="Arithmetic of the backbone's forward pass. `bf16` is faster on processors that support it, but "
        "changes the decision on some images (`python -m benchmarks shortcuts`).",
    )
    dtype: Literal["float16", "float32"] = Field("float16", description="Stored type of the patch features.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto` uses CUDA if the worker has it.")
    batch_size: int = Field(32, ge=1, description="Images per forward pass.")


class GaussianConfig(_Section):
    """The Gaussian fitted at each patch position (paper, section 3.2)."""

    estimator: Literal["auto", "ridge", "relative-ridge", "oas", "ledoit-wolf"] = Field(
        "auto",
        description="Covariance estimator. `auto` depends on the strategy: `ridge` for `paire`, `trim-once`, `none`, "
        "`oas` for `concentrate`, `relative-ridge` for `grow`.",
    )
    ridge: float = Field(
        1e-6, gt=0, description="lambda, added to the covariance's diagonal by every estimator (Eq. 5)."
    )
    relative_ridge: float = Field(
        0.1, gt=0, description="`relative-ridge`: a further ridge, as a share of the mean variance of a channel."
    )
    segment_images: int = Field(
        4096,
        ge=1,
        description="Images per statistics task. Moments always merge segment by segment in the same order, with "
        "any number of workers.",
    )


class TrimConfig(_Section):
    """The distance threshold at each position and the iteration (paper, sections 3.2 and 3.3)."""

    strategy: Literal["grow", "paire", "trim-once", "none", "concentrate"] = Field(
        "grow",
        description="How to find the clean set. `grow`: a robust half that grows image by image, as far as the law of "
        "clean scores goes, and measures neighbours besides the Gaussian. `paire`: the paper's method. `trim-once`, "
        "`none`: its ablations, one pass, or keep all as in PaDiM. `concentrate`: a half sample that grows by robust "
        "deviations.",
    )
    alpha: float = Field(0.05, gt=0, lt=1, description="Window length as a share of N (Eq. 8).")
    beta: float = Field(3.0, gt=0, description="Window length over window step (Eq. 9).")
    tau: float = Field(1.15, gt=0, description="Positions with a lower slope ratio are not trimmed (Eq. 15).")
    eta: float = Field(2.3, ge=1, description="How far between tau and R the slope multiplier lies (Eq. 15).")
    min_clean_fraction: float = Field(
        0.1, ge=0, le=1, description="Floor: if fewer images pass, keep this share, those with the smallest margins."
    )
    stop_fraction: float = Field(
        0.5, gt=0, le=1, description="Stop when more than this share of the group is clean (paper, section 3.3.1)."
    )
    max_iterations: int = Field(20, ge=1, description="Largest number of passes.")
    target_false_reject: float = Field(
        0.02, gt=0, lt=0.5, description="`grow`: the share of clean images that may be rejected."
    )
    smoothing: int = Field(
        1,
        ge=1,
        description="`grow`: side, in positions, of the square that log distances are averaged over before the largest "
        "is taken; 1 turns it off. It steadies large, faint defects and hides small ones.",
    )
    near_duplicates: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="Two images are near-duplicates if they are closer together than this share of the distance to the "
        "nearest quarter of the others, and than a tenth of their own length; 0 turns it off. `grow` fits one of them "
        "and judges none better than that one; the other strategies only count them.",
    )
    deviations: float = Field(
        2.0, gt=0, description="`concentrate`: k, in robust standard deviations; images within it are clean."
    )


class GuardConfig(_Section):
    """What to do about a result that the breakdown guard does not trust; it changes no verdict."""

    accept_untrustworthy: bool = Field(
        False, description="Publish the result whatever the breakdown guard finds, like `--accept-untrustworthy`."
    )
    accept_conditions: Annotated[tuple[Condition, ...], BeforeValidator(split_commas)] = Field(
        (),
        description="Conditions that the breakdown guard only warns about and never stops the run for: "
        "`contamination`, `positions`, `kinds`, `poses`, `images`, `power`, `purity`.",
    )
    power_images: int = Field(
        32,
        ge=0,
        description="Kept images of each group to plant a strong and a medium defect in, to measure how many the "
        "published map sees; fewer if the run has many groups, so that at most a twentieth of its images is extracted "
        "again; 0 measures nothing.",
    )


class StorageConfig(_Section):
    """How to reach ``s3://`` URLs; it never changes a result and never holds a secret."""

    endpoint_url: WebAddress = Field(
        None, description="Address of an S3-compatible store. Not set: AWS_ENDPOINT_URL, else Amazon S3."
    )
    region: OptionalText = Field(
        None, description="Region of the store. Not set: AWS_DEFAULT_REGION, else the profile's region."
    )
    profile: OptionalText = Field(
        None,
        description="Profile with the credentials in the AWS configuration files of each machine. Not set: "
        "AWS_PROFILE, AWS_ACCESS_KEY_ID and so on. No option takes the credentials themselves.",
    )
    anonymous: bool = Field(False, description="Read public buckets without credentials.")
    retry_seconds: float = Field(
        60.0,
        ge=0,
        description="How long to repeat a request that fails for a passing reason (no connection, SlowDown, a torn "
        "answer), with growing pauses, before the command gives up.",
    )
    timeout_s: float = Field(30.0, gt=0, description="How long to wait for an answer before it counts as failed.")


class ClusterConfig(_Section):
    """The local Dask cluster that starts unless a scheduler is named; it never changes a result."""

    scheduler: OptionalText = Field(
        None, description="Address of a running scheduler. `--scheduler` and DASK_SCHEDULER_ADDRESS take precedence."
    )
    workers: OptionalCount = Field(None, ge=1, description="Worker processes. Not set: one for every four cores.")
    threads_per_worker: OptionalCount = Field(
        None, ge=1, description="Compute threads of each worker. Not set: cores / workers."
    )
    processes: bool = Field(True, description="`false` runs the workers as threads of the command itself.")
    timeout_s: float = Field(
        60.0,
        gt=0,
        description="How long to wait for the scheduler and the first worker, and for a new worker if all have left.",
    )
    tls_ca_file: OptionalText = Field(
        None,
        description="PEM file of the authority that signs the certificates of scheduler, workers and clients. They "
        "refuse a peer without a certificate and encrypt their connections, also in a local cluster. Set all three "
        "TLS options or none. Not set: Dask's own configuration decides.",
    )
    tls_cert: OptionalText = Field(None, description="PEM file of this side's certificate.")
    tls_key: OptionalText = Field(None, description="PEM file of the certificate's private key, without a password.")

    @model_validator(mode="after")
    def _tls_is_whole(self) -> "ClusterConfig":
        files = {"tls_ca_file": self.tls_ca_file, "tls_cert": self.tls_cert, "tls_key": self.tls_key}
        missing = [f"cluster.{name}" for name, value in files.items() if value is None]
        if missing and len(missing) < len(files):
            raise ValueError(f"TLS needs {' and '.join(missing)} too. Set all three files or none")
        return self


class Config(_Section):
    """The whole configuration of a run."""

    input: InputConfig = InputConfig()
    features: FeaturesConfig = FeaturesConfig()
    gaussian: GaussianConfig = GaussianConfig()
    trim: TrimConfig = TrimConfig()
    guard: GuardConfig = GuardConfig()
    storage: StorageConfig = StorageConfig()
    cluster: ClusterConfig = ClusterConfig()

    def decisive(self) -> dict[str, Any]:
        """Return the options that verdicts depend on, not those that only say where, how fast or how long to compute.

        Weights in a file count only as ``file``: their place does not matter, and their content has its own digest.
        """
        options: dict[str, Any] = self.model_dump(
            mode="json",
            exclude={
                "cluster": True,
                "guard": True,
                "storage": True,
                "features": {"device"},
                "input": {"max_unreadable_fraction", "decode_timeout_s", "roots"},
            },
        )
        if not is_reserved_weights(self.features.weights):
            options["features"]["weights"] = "file"
        for name in ("mean", "std"):  # options that runs before them did not record
            if options["features"][name] is None:
                del options["features"][name]
        return options

    def digest(self) -> str:
        """Return the sha256 hex digest of the decisive options in canonical JSON."""
        canonical = json.dumps(self.decisive(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_yaml(self) -> str:
        """Return all options as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested options into ``{"section.key": value}``."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def option_names() -> list[str]:
    """Return the names of all options, each ``section.key``."""
    return [f"{section}.{key}" for section, key, _ in _options()]


def parse_config(text: str | None = None, settings: Sequence[str] = (), *, origin: str = "configuration") -> Config:
    """Build the configuration from YAML text and settings.

    Parameters
    ----------
    settings
        Each ``section.key=value``; later ones win, and values are converted to the type of the option.
    origin
        Where ``text`` came from, for error messages.

    Raises
    ------
    ConfigError
        For malformed YAML, an unknown key, a wrong type or a value out of range.
    """
    try:
        options = yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise ConfigError(f"{origin} is not valid YAML: {detail}. Correct it and run again.") from error
    if options is None:
        options = {}
    if not isinstance(options, dict) or not all(isinstance(part, dict | None) for part in options.values()):
        raise ConfigError(f"{origin} must map sections to options, like 'trim: {{eta: 2.6}}'.")
    merged: dict[str, dict[str, Any]] = {str(name): dict(section or {}) for name, section in options.items()}
    for setting in settings:
        name, equals, value = setting.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and section and key):
            raise ConfigError(f"--set {setting!r} is not of the form section.key=value, like trim.eta=2.6.")
        merged.setdefault(section, {})[key] = value
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(error))) from error


def reference() -> str:
    """Return the configuration reference as a Markdown table."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for section, key, field in _options():
        given = None if field.default_factory else field.default
        default = ",".join(given) if isinstance(given, tuple) else given
        written = str(default).lower() if isinstance(default, bool) else default
        shown = "not set" if written in (None, "") else f"`{written}`"
        rows.append(f"| `{section}.{key}` | {shown} | {field.description} |")
    return "\n".join(rows) + "\n"


def _options() -> Iterator[tuple[str, str, Any]]:
    for section, outer in Config.model_fields.items():
        model = outer.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        for key, field in model.model_fields.items():
            yield section, key, field


def _explain(error: ValidationError) -> Iterator[str]:
    """Yield one sentence for each wrong option."""
    for problem in error.errors():
        if problem["type"] == "default_factory_not_called":  # follows from another problem
            continue
        name = ".".join(str(part) for part in problem["loc"] if not isinstance(part, int))
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, option_names() + list(Config.model_fields), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Sections: {', '.join(Config.model_fields)}."
            yield f"unknown option {name!r}.{hint}"
        else:
            value = redacted(repr(problem["input"]))
            yield f"{name} = {value}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def is_reserved_weights(weights: str) -> bool:
    """Tell whether ``features.weights`` is a keyword rather than a file."""
    return weights in {"imagenet", "random"}
