"""``cdam-med concept``: what examples have in common, made from a cohort, listed, explained."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cdam_med.cli.repairs import OverwriteOption
from cdam_med.cli.terminal import working

CONCEPT_FOLDER = "concepts"
"""Where the concepts of a cohort lie in it."""

BATCH = 32


class SimilarityName(StrEnum):
    """How like a concept an image is."""

    DOT = "dot"
    COSINE = "cosine"
    NEGATIVE_L2 = "negative_l2"


concept = typer.Typer(
    name="concept",
    no_args_is_help=True,
    help="Make and list concepts: what the class tokens of example nodules have in common.",
)


@concept.command("make")
def make_concept(
    cohort: Annotated[Path, typer.Argument(metavar="COHORT", help="A cohort folder.")],
    query: Annotated[
        str, typer.Option(help="Which nodules are examples, e.g. 'spiculation >= 4'.")
    ],
    label: Annotated[str, typer.Option(help="Its name: letters, digits, '_' and '-'.")],
    model: Annotated[str, typer.Option(help="'demo', or the folder of a trained model.")] = "demo",
    similarity: Annotated[
        SimilarityName, typer.Option(help="How alike: dot as in the paper, cosine, negative_l2.")
    ] = SimilarityName.DOT,
    out: Annotated[
        Path | None, typer.Option(help="The file; COHORT/concepts/LABEL.safetensors else.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Make a concept of the nodules of a cohort that a query on their ratings picks."""
    with working("Reading the examples"):
        from cdam_med.attribution.concept import (
            check_concept_file,
            concept_from_images,
            save_concept,
        )
        from cdam_med.data.rating_query import parse_query
        from cdam_med.evaluation.example_sources import examples_from_cohort
        from cdam_med.models.checkpoint import load_model
        from cdam_med.pipeline import concept_target
        from data_prep.cohort.folder import read_cohort
        from data_prep.errors import InputError

        matches = parse_query(query)
        file = out or cohort / CONCEPT_FOLDER / f"{label}.safetensors"
        check_concept_file(file, overwrite=overwrite)
        loaded = load_model(model)
        source = read_cohort(cohort)
        picked = [nodule.nodule_id for nodule in source.nodules if matches(nodule.ratings)]
        if not picked:
            raise InputError(f"No nodule of {cohort} has {query}; ask for less.")
        examples = examples_from_cohort(source, loaded, nodules=picked)
    import torch

    with working("Making the concept"):
        made = concept_from_images(
            loaded,
            torch.split(examples.images, BATCH),
            label=label,
            examples=examples.ids,
            similarity=similarity.value,
            source=query,
        )
    concept_target(made)  # refuses a label that can't name a file
    file.parent.mkdir(parents=True, exist_ok=True)
    save_concept(made, file, overwrite=overwrite)
    typer.echo(f"{label}: {len(made.examples)} nodules with {query}: {file}")


@concept.command("list")
def list_concepts(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A cohort folder, or a folder or file of concepts"),
    ],
) -> None:
    """List concepts: label, examples, similarity, model, and where the examples come from."""
    from cdam_med.attribution.concept import load_concept
    from data_prep.errors import InputError

    folder = path / CONCEPT_FOLDER if (path / CONCEPT_FOLDER).is_dir() else path
    files = [path] if path.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"There is no concept in {path}; 'cdam-med concept make' makes one.")
    for file in files:
        found = load_concept(file)
        typer.echo(
            f"{found.label}: {len(found.examples)} examples ({found.source}), {found.similarity}, "
            f"model {found.model} {found.weights_sha256[:12]}: {file}"
        )
