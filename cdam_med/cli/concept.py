"""``cdam-med concept``: what examples have in common, made from a cohort, listed, explained."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cdam_med.cli.command import (
    DeviceOption,
    JsonOption,
    OverwriteOption,
    as_command,
    choose_device,
    option,
)
from cdam_med.cli.terminal import print_outcome, working

CONCEPT_FOLDER = "concepts"
"""Where the concepts of a cohort lie in it."""

BATCH = 32

concept = typer.Typer(
    name="concept",
    no_args_is_help=True,
    help="Make and list concepts: what the class tokens of example nodules have in common.",
)


@concept.command(
    "make",
    epilog="Example: cdam-med concept make cohort --query 'spiculation >= 4' --label spiculated",
)
@as_command
def make_concept(
    cohort: Annotated[Path, typer.Argument(metavar="COHORT", help="A cohort folder.")],
    query: Annotated[str, option("Which nodules are examples, e.g. 'spiculation >= 4'.")],
    label: Annotated[str, option("Its name: letters, digits, '_' and '-'.")],
    model: Annotated[str, option("'demo', or the folder of a trained model.")] = "demo",
    similarity: Annotated[
        Literal["dot", "cosine", "negative_l2"],
        option("How alike: dot as in the paper, cosine, negative_l2."),
    ] = "dot",
    out: Annotated[Path | None, option("The file; COHORT/concepts/LABEL.safetensors else.")] = None,
    overwrite: OverwriteOption = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Make a concept of the nodules of a cohort that a query on their ratings picks."""
    from cdam_med.data.rating_query import parse_query
    from cdam_med.targets import check_concept_label

    matches = parse_query(query)
    check_concept_label(label)
    with working("Reading the examples"):
        import torch

        from cdam_med.attribution.concept import concept_from_images
        from cdam_med.evaluation.examples import examples_from_cohort
        from cdam_med.models.store import check_concept_file, load_model, save_concept
        from data_prep.cohort.folder import read_cohort
        from data_prep.errors import InputError

        file = out or cohort / CONCEPT_FOLDER / f"{label}.safetensors"
        check_concept_file(file, overwrite=overwrite)
        source = read_cohort(cohort)
        loaded = load_model(model, device=choose_device(device))
        picked = [nodule.nodule_id for nodule in source.nodules if matches(nodule.ratings)]
        if not picked:
            raise InputError(f"No nodule of {cohort} has {query}; ask for less.")
        examples = examples_from_cohort(source, loaded, nodules=picked)
    with working("Making the concept"):
        made = concept_from_images(
            loaded,
            torch.split(examples.images, BATCH),
            label=label,
            examples=examples.ids,
            similarity=similarity,
            source=query,
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    save_concept(made, file, overwrite=overwrite)
    print_outcome(
        {"label": label, "examples": list(made.examples), "file": str(file)},
        f"{label}: {len(made.examples)} nodules with {query}: {file}",
        as_json=as_json,
    )


@concept.command("list", epilog="Example: cdam-med concept list cohort")
@as_command
def list_concepts(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A cohort folder, or a folder or file of concepts."),
    ],
    as_json: JsonOption = False,
) -> None:
    """List concepts: label, examples, similarity, model, and where the examples come from."""
    with working("Reading the concepts"):
        from cdam_med.models.store import load_concept
        from data_prep.errors import InputError

        folder = path / CONCEPT_FOLDER if (path / CONCEPT_FOLDER).is_dir() else path
        files = [path] if path.is_file() else sorted(folder.glob("*.safetensors"))
        if not files:
            raise InputError(f"There is no concept in {path}; 'cdam-med concept make' makes one.")
        found = {str(file): load_concept(file) for file in files}
    keys = ("label", "source", "similarity", "model", "weights_sha256")
    content = [
        {
            **{key: getattr(each, key) for key in keys},
            "examples": list(each.examples),
            "file": file,
        }
        for file, each in found.items()
    ]
    lines = (
        f"{each.label}: {len(each.examples)} examples ({each.source}), {each.similarity}, "
        f"model {each.model} {each.weights_sha256[:12]}: {file}"
        for file, each in found.items()
    )
    print_outcome(content, *lines, as_json=as_json)
