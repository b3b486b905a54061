"""The rules that hold for source text: who imports whom, what is never called, what an import may do.

Each rule takes the text of one module and returns what is wrong with it, one line per finding.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = ("pipeline_common", "concept_evaluation")

STORE = "s1_compute_all_features.feature_store"
RANKED = "s2_find_top_features.ranked_features"
READERS = {
    "s0_dataset_generation": set(),
    "s1_compute_all_features": {"s0_dataset_generation.labelled_sentences"},
    "s2_find_top_features": {STORE},
    "s3_feature_activation_graphs": {STORE, RANKED},
    "s4_classifier_data_prep": {STORE, RANKED},
    "s5_classifier_training": {STORE, "s4_classifier_data_prep.classifier_dataset"},
    "run_pipeline": {STORE, RANKED},
}
"""The table of the architecture: the modules of other stages that a stage may import, beside the shared
packages and its own."""

PACKAGES = (*SHARED, *(name for name in READERS if name != "run_pipeline"))

LIBRARIES = {"pipeline_common": {"numpy"}, "concept_evaluation": {"numpy", "scipy", "sklearn"}}
"""What the shared packages may import beside the standard library."""

ONLY_IN = {
    **dict.fromkeys(
        ("torch", "transformers", "sae_lens", "transformer_lens", "tokenizers", "safetensors"),
        "s1_compute_all_features",
    ),
    "openai": "s0_dataset_generation.llm_connection",
}
"""Library to the only package or module that imports it."""

SCRIPTS_THAT_ARE_LIBRARIES = {"s1_compute_all_features.sae_configurations"}
"""It reads the configuration files and builds them: one module owns the format, and the command that
writes it is that format's writer."""

NAMED_AT_RUN_TIME = {"s5_classifier_training.framework.estimators"}
"""Imports scikit-learn's classes by the names of its registry, never one of ours."""

UNPICKLING = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
FILE_MODULES = {"pathlib", "os", "io", "shutil", "tempfile", "csv", "json", "zipfile", "pickle", "glob"}
FILE_CALLS = {"open", "Path", "fromfile", "tofile", "memmap", "genfromtxt"}
FILE_CALL_PREFIXES = ("read", "write", "load", "save", "dump")


@dataclass(frozen=True)
class Import:
    """One imported thing: ``import a.b`` has no name, ``from a.b import c`` has the name ``c``."""

    line: int
    module: str
    name: str | None = None
    level: int = 0

    @property
    def package(self) -> str:
        return self.module.split(".")[0]

    def reaches(self, modules: set[str]) -> bool:
        """Whether it is one of the modules, or something in one."""
        return self.module in modules or f"{self.module}.{self.name}" in modules


def modules_of_the_project() -> dict[str, str]:
    """Dotted name to source text of every module of the packages, and of run_pipeline."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    sources = {}
    for path in [*paths, ROOT / "run_pipeline.py"]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        sources[".".join(parts).removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return sources


def imports_of(source: str) -> list[Import]:
    """Every import, those inside functions and under TYPE_CHECKING included."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [Import(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [Import(node.lineno, node.module or "", alias.name, node.level) for alias in node.names]
    return found


def is_script(source: str) -> bool:
    """Whether the module runs something when it is the program."""
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in ast.parse(source).body
    )


def wrong_imports(module: str, source: str) -> list[str]:
    """Imports against the table: another stage's module, a library in the wrong place, a relative import."""
    own = module.split(".")[0]
    findings = []
    for found in imports_of(source):
        what = f"{module}:{found.line}: imports {found.module}{f'.{found.name}' if found.name else ''}"
        if found.level:
            findings.append(f"{what} relatively")
        elif found.package == own or (own not in SHARED and found.package in SHARED):
            continue
        elif found.package in SHARED or found.package in READERS:
            if own in SHARED:
                findings.append(f"{what}: a shared package imports none of ours but itself")
            elif not found.reaches(READERS[own]):
                findings.append(f"{what}: {own} may import only {sorted(READERS[own])}")
        elif own in SHARED and found.package not in LIBRARIES[own] | sys.stdlib_module_names:
            findings.append(f"{what}: {own} has the standard library and {sorted(LIBRARIES[own])}")
        elif found.package in ONLY_IN:
            place = ONLY_IN[found.package]
            if module != place and own != place:
                findings.append(f"{what}: only {place} does")
    return findings


def imported_scripts(module: str, source: str, scripts: set[str]) -> list[str]:
    """Imports of a script by a script."""
    if module not in scripts:
        return []
    return [
        f"{module}:{found.line}: a script imports the script {found.module}"
        for found in imports_of(source)
        if found.reaches(scripts - SCRIPTS_THAT_ARE_LIBRARIES)
    ]


def unsafe_calls(module: str, source: str) -> list[str]:
    """Whatever runs code from a data file, or reaches round the import rules."""
    findings = [
        f"{module}:{found.line}: imports {found.module}, which runs what it loads"
        for found in imports_of(source)
        if found.package in UNPICKLING
    ]
    for node in ast.walk(ast.parse(source)):
        text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
        line = getattr(node, "lineno", 0)
        if text == "sys.path":
            findings.append(f"{module}:{line}: touches sys.path")
        if text in ("importlib.import_module", "__import__") and module not in NAMED_AT_RUN_TIME:
            findings.append(f"{module}:{line}: imports by a name made at run time")
        if text in ("yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all"):
            findings.append(f"{module}:{line}: {text} instead of yaml.safe_load")
        if isinstance(node, ast.Call):
            findings += [f"{module}:{line}: {finding}" for finding in _unsafe_arguments(node)]
    return findings


def _unsafe_arguments(call: ast.Call) -> Iterator[str]:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    for name in ("allow_pickle", "trust_remote_code"):
        if given.get(name, "False") != "False":
            yield f"{name}={given[name]}"
    if ast.unparse(call.func) == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True"


def opened_files(module: str, source: str) -> list[str]:
    """Files that a module opens, or could: for the package that has arrays in and numbers out."""
    findings = [
        f"{module}:{found.line}: imports {found.module}"
        for found in imports_of(source)
        if found.package in FILE_MODULES
    ]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rsplit(".", 1)[-1]
            if name in FILE_CALLS or name.startswith(FILE_CALL_PREFIXES):
                findings.append(f"{module}:{node.lineno}: calls {name}")
    return findings


def deeds_of_an_import(module: str, source: str) -> list[str]:
    """Statements at the top of a module that do something rather than define something."""
    findings = []
    for node in ast.parse(source).body:
        defines = isinstance(
            node,
            ast.Import
            | ast.ImportFrom
            | ast.Assign
            | ast.AnnAssign
            | ast.FunctionDef
            | ast.AsyncFunctionDef
            | ast.ClassDef,
        )
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        guard = isinstance(node, ast.If) and ast.unparse(node.test) in (
            "TYPE_CHECKING",
            "__name__ == '__main__'",
        )
        if not (defines or docstring or guard):
            findings.append(f"{module}:{node.lineno}: {ast.unparse(node).splitlines()[0]}")
    return findings
