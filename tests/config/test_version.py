"""The version of the package, installed or not."""

from __future__ import annotations

import importlib.metadata

import pytest

import xaieval
from xaieval.cli.json_output import render
from xaieval.config.version import NOT_INSTALLED, package_version


def test_the_version_is_the_one_that_is_written_in_the_package():
    assert package_version() == xaieval.__version__


def test_a_source_tree_that_is_not_installed_says_so(monkeypatch):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert package_version() == NOT_INSTALLED
    assert f'"xaieval": "{NOT_INSTALLED}"' in render({})
    with pytest.raises(importlib.metadata.PackageNotFoundError):  # other packages are not covered up
        importlib.metadata.version("torch")
