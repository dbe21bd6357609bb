"""Makes the stubs from the server's proto file when the package is built."""

from importlib.metadata import version
from pathlib import Path

import grpc_tools
from grpc_tools import protoc
from setuptools import setup
from setuptools.command.build_py import build_py

PROTOS = Path(__file__).resolve().parents[2] / "proto"
CONTRACT = "resnet18/v1/classifier.proto"


class BuildWithStubs(build_py):
    """Copies the package, and puts the stubs beside it."""

    def run(self):
        super().run()
        # In an editable installation they go where the sources are.
        out = self.get_package_dir("") or "." if self.editable_mode else self.build_lib
        arguments = [
            "protoc",
            f"-I{PROTOS}",
            f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            CONTRACT,
        ]
        if protoc.main(arguments) != 0:
            raise SystemExit(f"no stubs could be made of {PROTOS / CONTRACT}")


setup(
    cmdclass={"build_py": BuildWithStubs},
    install_requires=[
        f"grpcio>={version('grpcio-tools')}",
        f"protobuf>={version('protobuf')}",
    ],
)
