"""No file imports itself through others, whether at its top or within a function."""

from __future__ import annotations

from graphlib import TopologicalSorter

import grimp

PACKAGES = ("headstock", "headstock_models", "headstock_triton", "headstock_cuda", "headstock_rocm")


def test_files_import_each_other_one_way() -> None:
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True)
    files = {
        importer: graph.find_modules_directly_imported_by(importer) for importer in graph.modules
    }
    assert "headstock.runner.runner" in files["headstock.assemble.serving_runner"]
    TopologicalSorter(files).prepare()  # raises CycleError with the files of a circle
