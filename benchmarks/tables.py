"""Write the ten tables of the study `tables` as CSV files.

    python benchmarks/tables.py FOLDER [--only NAME ...]

Needs scikit-learn, pandas and, for five of them, statsmodels, palmerpenguins and vega_datasets, whose wheels carry the
data: nothing is fetched. Rows with a missing value are dropped, and how many is printed.
"""

import argparse
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any


def of_sklearn(name: str, **options: Any) -> Any:
    """A table of scikit-learn with its target: names of classes, or numbers."""
    from sklearn import datasets

    loaded = getattr(datasets, f"load_{name}")(as_frame=True, **options)
    frame = loaded.frame
    if "target_names" in loaded and name != "digits":
        frame["target"] = [str(loaded.target_names[number]) for number in frame["target"]]
    return frame


def digits() -> Any:
    """The 64 pixels of the digits, without classes."""
    return of_sklearn("digits").drop(columns="target")


def of_statsmodels(name: str) -> Any:
    """A table of statsmodels."""
    from statsmodels import datasets

    return getattr(datasets, name).load_pandas().data


def penguins() -> Any:
    """Palmer penguins."""
    from palmerpenguins import load_penguins

    return load_penguins()


def seattle_weather() -> Any:
    """Daily weather, without its date."""
    from vega_datasets import local_data

    return local_data.seattle_weather().drop(columns="date")


TABLES: dict[str, tuple[str, Callable[[], Any]]] = {
    "iris": ("scikit-learn", lambda: of_sklearn("iris")),
    "wine": ("scikit-learn", lambda: of_sklearn("wine")),
    "engel": ("statsmodels", lambda: of_statsmodels("engel")),
    "penguins": ("palmerpenguins", penguins),
    "diabetes": ("scikit-learn", lambda: of_sklearn("diabetes", scaled=False)),
    "breast_cancer": ("scikit-learn", lambda: of_sklearn("breast_cancer")),
    "seattle_weather": ("vega_datasets", seattle_weather),
    "digits": ("scikit-learn", digits),
    "fair": ("statsmodels", lambda: of_statsmodels("fair")),
    "randhie": ("statsmodels", lambda: of_statsmodels("randhie")),
}
"""The package of each table, and how to load it from there."""


def main(folder: Path, names: list[str]) -> None:
    """Write some of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        package, load = TABLES[name]
        frame = load()
        complete = frame.dropna()
        complete.to_csv(folder / f"{name}.csv", index=False)
        dropped = f", {len(frame) - len(complete)} with missing values dropped" if len(complete) < len(frame) else ""
        print(f"{name}: {len(complete):,} rows, {complete.shape[1]} columns{dropped}; {package} {version(package)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the CSV files")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES), help="write only these")
    options = parser.parse_args()
    main(options.folder, options.only)
