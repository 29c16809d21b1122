"""Builds the native library (build_tools/native.py); everything else is in pyproject.toml."""

from pathlib import Path

import setuptools
from native import ROOT, BuildError, build, check_setuptools  # build_tools, by pyproject's backend-path
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class BuildNative(build_ext):
    def run(self) -> None:
        inplace = self.inplace or self.editable_mode
        destination = ROOT / "fastwm" if inplace else Path(self.build_lib).resolve() / "fastwm"
        try:
            self.built = build(destination, ROOT / "build" / "native")
        except BuildError as error:
            raise SystemExit(f"fastwm: {error}") from None

    def get_outputs(self) -> list[str]:
        return [str(path) for path in getattr(self, "built", [])]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


check_setuptools(setuptools.__version__)
setup(cmdclass={"build_ext": BuildNative}, ext_modules=[Extension("fastwm._C", sources=[])])
