"""Do two versions of paire give the same results? ``python -m studies.equality fingerprint DATA WEIGHTS FILE``.

Cleans every archive in DATA under every strategy, on disk and on an S3 server of this machine, and writes a digest of
everything that a consumer can read: manifest, clean list, ledger, passes, distances, Gaussian map. Ids, times and
versions are left out. ``compare BEFORE AFTER`` says which digests differ, to the last bit. The command to try is
``--paire``, so that one version can be tried with the other's code: only the files of the run directory are read.
"""

import argparse
import hashlib
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr

STRATEGIES = ("grow", "concentrate", "paire", "trim-once", "none")
NODES = "features.4,features.7,features.12"

# What differs between two runs of the same code in two places (file_name stands for image_path), and what a version
# says in other words.
OWN = {"run_id", "seconds", "run", "config_digest", "image_path", "checksum", "sentence", "warnings"}


def main() -> None:
    """Parse the arguments and run the part that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    fingerprint = parts.add_parser("fingerprint")
    fingerprint.add_argument("data", type=Path)
    fingerprint.add_argument("weights", type=Path)
    fingerprint.add_argument("file", type=Path)
    fingerprint.add_argument("--paire", default="paire", help="The command to try.")
    fingerprint.add_argument("--only", default="", help="Try archives whose name contains this.")
    compare = parts.add_parser("compare")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    asked = parser.parse_args()
    if asked.part == "compare":
        sys.exit(show_differences(json.loads(asked.before.read_text()), json.loads(asked.after.read_text())))
    with tempfile.TemporaryDirectory() as scratch:
        digests = fingerprint_all(shlex.split(asked.paire), asked.data, asked.weights, Path(scratch), asked.only)
    asked.file.write_text(json.dumps(digests, indent=1))


def show_differences(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print what differs; returns the number of runs that do."""
    differing = 0
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name, {}), after.get(name, {})
        changed = [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]
        differing += bool(changed)
        print(f"{name}: {'equal' if not changed else 'DIFFERENT: ' + ', '.join(changed)} ({len(one)} digests)")
    print(f"{differing} of {len(before.keys() | after.keys())} runs differ")
    return differing


def fingerprint_all(
    paire: list[str], data: Path, weights: Path, scratch: Path, only: str
) -> dict[str, dict[str, str | int]]:
    """Return the digests of every run."""
    found: dict[str, dict[str, str | int]] = {}
    for name, source, settings in archives(data, scratch):
        if only not in name:
            continue
        run = scratch / "runs" / name
        features = (f"features.weights={weights}", "features.backbone=squeezenet1_1", f"features.nodes={NODES}")
        options = [part for text in (*features, *settings) for part in ("--set", text)]
        for strategy in STRATEGIES:
            # The first is cleaned, the others are cut from its features: both jobs are tried.
            chosen = [*options, "--set", f"trim.strategy={strategy}"]
            if strategy == STRATEGIES[0]:
                code = call(paire, ["clean", str(source), "--out", str(run), *chosen])
                found[f"{name}/{strategy}"] = {"exit": code, **digest_run(run)}
            else:
                code = call(paire, ["recut", str(run), "--set", f"trim.strategy={strategy}"])
                version = sorted((run / "recuts").iterdir())[-1]
                found[f"{name}/{strategy}"] = {"exit": code, **digest_run(version)}
            print(name, strategy, f"exit {code}", flush=True)
    bottle = next(iter(archives(data, scratch)))[1]
    if only in "s3":
        found |= fingerprint_s3(paire, bottle, weights, scratch)
    return found


def fingerprint_s3(paire: list[str], source: Path, weights: Path, scratch: Path) -> dict[str, dict[str, str | int]]:
    """Return the digests of every strategy, cleaned into an object store."""
    found: dict[str, dict[str, str | int]] = {}
    with object_store() as (endpoint, fetch):
        for strategy in STRATEGIES:
            settings = (
                f"storage.endpoint_url={endpoint}",
                f"features.weights={weights}",
                "features.backbone=squeezenet1_1",
                f"features.nodes={NODES}",
                f"trim.strategy={strategy}",
                "features.image_size=128",
            )
            options = [part for text in settings for part in ("--set", text)]
            code = call(paire, ["clean", str(source), "--out", f"s3://runs/{strategy}", *options])
            copy = scratch / "s3" / strategy
            fetch(strategy, copy)
            found[f"s3/{strategy}"] = {"exit": code, **digest_run(copy)}
            print("s3", strategy, f"exit {code}", flush=True)
    return found


def archives(data: Path, scratch: Path) -> Iterator[tuple[str, Path, tuple[str, ...]]]:
    """Yield name, folder and settings of every archive to clean, in an order that does not change."""
    bottle = gather(scratch / "bottle", sorted((data / "mvtec_bottle").glob("t*/*/*.png"))[:240:4])
    yield "bottle", bottle, ()
    yield "bottle-few-channels", bottle, ("features.channels=60", "features.image_size=192")
    yield "bottle-smooth-oas", bottle, ("trim.smoothing=3", "gaussian.estimator=oas", "features.image_size=128")
    yield "bottle-ledoit-wolf", bottle, ("gaussian.estimator=ledoit-wolf", "features.image_size=128")
    for name in ("kolektor_sdd", "transistor", "casting", "magtile"):
        paths = sorted((data / name / "images").iterdir())
        yield name, gather(scratch / name, paths[:: max(1, len(paths) // 60)]), ()
    grouped = scratch / "grouped"
    for number, name in enumerate(("transistor", "casting", "magtile")):
        gather(grouped / name, sorted((data / name / "images").iterdir())[: 14 + 9 * number])
    (grouped / "magtile" / "broken.jpg").write_bytes(b"not an image")
    yield "grouped", grouped, ("input.group_by={line}/**", "features.image_size=128", "guard.accept_untrustworthy=true")


def gather(folder: Path, paths: list[Path]) -> Path:
    """Copy images into a folder, one of them twice; returns it."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for path in paths:
            shutil.copy(path, folder / f"{path.parent.name}_{path.name}")
        shutil.copy(paths[0], folder / f"zz_copy_{paths[0].name}")
    return folder


def call(paire: list[str], arguments: list[str]) -> int:
    """Run a command; returns its exit code, which is 0, or 4 where the guard does not trust the result."""
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    done = subprocess.run([*paire, *arguments, "--quiet"], capture_output=True, text=True, env=environment, check=False)
    if done.returncode not in (0, 4):
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    return done.returncode


@contextmanager
def object_store() -> Iterator[tuple[str, Any]]:
    """Start an S3 server on a free port; gives its address and what copies a run from it."""
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        store = s3fs.S3FileSystem(key="test", secret="test", endpoint_url=endpoint, skip_instance_cache=True)
        store.mkdir("runs")
        yield endpoint, lambda run, folder: store.get(f"runs/{run}/", f"{folder}/", recursive=True)
    finally:
        server.stop()


def digest_run(run: Path) -> dict[str, str]:
    """Return the sha256 of each part of a run directory that a consumer can read."""
    digests = {
        name: digest(pd.read_parquet(run / name).drop(columns=list(OWN), errors="ignore").to_csv().encode())
        for name in ("manifest.parquet", "iterations.parquet")
    }
    clean = pd.read_csv(run / "clean.csv").drop(columns="image_path")
    digests["clean.csv"] = digest(clean.to_csv().encode())
    digests["ledger.json"] = digest(json.dumps(without_own(json.loads((run / "ledger.json").read_text()))).encode())
    for store in ("distances", "model"):
        for path in sorted((run / store).rglob("zarr.json")):
            node = zarr.open(path.parent, mode="r")
            content = digest(json.dumps(without_own(dict(node.attrs)), sort_keys=True).encode())
            if isinstance(node, zarr.Array):
                content += digest(np.ascontiguousarray(node[...]).tobytes())
            digests[path.parent.relative_to(run).as_posix()] = content
    return digests


def without_own(content: Any) -> Any:
    """Return JSON data without what differs between two runs of the same code."""
    if isinstance(content, dict):
        return {key: without_own(value) for key, value in content.items() if key not in OWN}
    return [without_own(value) for value in content] if isinstance(content, list) else content


def digest(content: bytes) -> str:
    """Return a sha256."""
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    main()
