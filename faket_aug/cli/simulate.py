"""`faket-aug simulate`: a set of labelled tomograms on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from faket_aug.cli._simulation import Done

_SET, _FILES, _GENERATED, _TILTS, _WRITTEN = (
    "The set",
    "Specimens from files",
    "Generated specimens",
    "Tilts and reconstruction",
    "What is written",
)


def _option(help: str, panel: str, **settings: Any) -> Any:
    """Describe an option; nothing is the library's default, or the file's of --config."""
    return typer.Option(help=help, rich_help_panel=panel, show_default=False, **settings)


_Text = str | None
_Number = float | None
_Whole = int | None


def simulate(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder of the set, made where it is missing.")],
    count: Annotated[
        _Whole, _option("Tomograms in all; by default one for each specimen from a file, or one.", _SET, min=1)
    ] = None,
    seed: Annotated[_Whole, _option("Of all chance; 0 by default.", _SET, min=0)] = None,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Make part I of N only; see the example.", rich_help_panel=_SET)
    ] = "1/1",
    config: Annotated[
        Path | None,
        _option("JSON file of the options below, or the simulation.json of a set; the command line wins.", _SET),
    ] = None,
    specimens: Annotated[
        list[str] | None, _option("Folder in any format read: SHREC's, PolNet's, plain, copick; repeatable.", _FILES)
    ] = None,
    dark: Annotated[bool | None, _option("Particles are dark in them, as in a microscope's tomograms.", _FILES)] = None,
    templates: Annotated[
        list[str] | None,
        _option("Particles: a density map, an atomic structure, or a folder of them; repeatable.", _GENERATED),
    ] = None,
    distractors: Annotated[list[str] | None, _option("The same, of particles without a label.", _GENERATED)] = None,
    counts: Annotated[_Text, _option("Particles of a class: 50, or 1bxn=50,3gl1=20 (no others).", _GENERATED)] = None,
    concentrations: Annotated[_Text, _option("Instead: particles per µm³ of ice.", _GENERATED)] = None,
    occupancy: Annotated[
        _Number, _option("Share of the ice that particles fill; counts are ratios then.", _GENERATED)
    ] = None,
    resolution: Annotated[_Number, _option("Å, low-pass of the templates.", _GENERATED)] = None,
    membrane_bound: Annotated[_Text, _option("Classes that stand on membranes: 1bxn,3gl1.", _GENERATED)] = None,
    membranes: Annotated[_Text, _option("Membranes: sphere=2,ellipsoid=1,toroid=1,sheet=1.", _GENERATED)] = None,
    filaments: Annotated[_Text, _option("Filaments: actin=3,microtubule=1.", _GENERATED)] = None,
    fiducials: Annotated[_Whole, _option("Gold beads.", _GENERATED)] = None,
    slab: Annotated[_Text, _option("Thickness of the ice, Å: 1500 or 1000,2000.", _GENERATED)] = None,
    slab_tilt: Annotated[_Text, _option("Its tilt, degrees: 5 or 0,10.", _GENERATED)] = None,
    gap: Annotated[_Number, _option("Å that stay free between particles.", _GENERATED)] = None,
    shape: Annotated[_Text, _option("Voxels: z,y,x.", _GENERATED)] = None,
    voxel_size: Annotated[_Number, _option("Å; of files, where their headers hold none.", _GENERATED)] = None,
    modality: Annotated[
        _Text, _option("noiseless, baseline, noisy, content or faket; faket with --style, noisy without.", _TILTS)
    ] = None,
    style: Annotated[
        list[str] | None, _option("Unlabelled tilt-series of a microscope, a stack or its folder; repeatable.", _TILTS)
    ] = None,
    weights: Annotated[
        _Text, _option('Encoder: a .pth or .safetensors file, "torchvision" (the default) or "random".', _TILTS)
    ] = None,
    precision: Annotated[_Text, _option("Of the encoder: float32 (the default) or bfloat16.", _TILTS)] = None,
    style_layers: Annotated[_Text, _option("ReLUs of VGG-19: 1,6,11,20,29.", _TILTS)] = None,
    style_cache: Annotated[_Text, _option("Folder that keeps the encoded style; by default the set's.", _TILTS)] = None,
    step_size: Annotated[
        _Number, _option("Of the style transfer; by default that of --noise, or 0.15.", _TILTS)
    ] = None,
    noise: Annotated[_Text, _option("What `faket-aug fit` wrote, or the JSON of NoiseModel.to_json.", _TILTS)] = None,
    snr: Annotated[_Number, _option("Without it: signal power over noise power at 0°.", _TILTS)] = None,
    quantiles: Annotated[_Text, _option("Range of the style's values: 0.001,0.999 against beads.", _TILTS)] = None,
    tilt_angles: Annotated[
        _Text, _option("first:last:step in degrees, or a file; by default of --noise, --style, or -60:60:3.", _TILTS)
    ] = None,
    filter: Annotated[_Text, _option("Of the reconstruction: shrec, ramp, ...", _TILTS)] = None,
    resampling: Annotated[_Text, _option("Of tilts finer than the labels: spline or fourier.", _TILTS)] = None,
    extend: Annotated[
        _Text, _option("Beyond the specimen: zero, or wrap (itself again); of --noise, or zero.", _TILTS)
    ] = None,
    device: Annotated[_Text, _option("cpu or cuda.", _TILTS)] = None,
    threads: Annotated[_Whole, _option("Intra-op threads; their number changes the last bits.", _TILTS)] = None,
    formats: Annotated[
        _Text, _option("Of the particles: shrec (the default), star3, star4, star5, deepfinder, copick.", _WRITTEN)
    ] = None,
    noiseless: Annotated[
        bool | None, _option("Also the tomogram without noise, the other half of a denoiser's pair.", _WRITTEN)
    ] = None,
    density: Annotated[bool | None, _option("Also the specimen's density; on by default.", _WRITTEN)] = None,
) -> None:
    """Write labelled tomograms: tilt-series, tomogram, labels, particles, and the record that makes each again.

    Specimens are read from files (--specimens) or generated (--templates, --membranes, --filaments, --fiducials). The
    same command goes on after a stop: what is whole stays. On a cluster each job of an array takes a part, as
    `--shard $SLURM_ARRAY_TASK_ID/10` with `#SBATCH --array=1-10`. From its record alone comes tomogram 7 again:
    `faket-aug simulate again --config set/tomogram_0007/record.json --count 8 --shard 8/8`.
    """
    from faket_aug.cli._options import Options
    from faket_aug.cli._sets import Shard
    from faket_aug.cli._simulation import Work, run

    own = ("context", "folder", "count", "shard", "config")
    # An option that may be repeated, and was not given, is an empty list.
    given = {name: value for name, value in context.params.items() if name not in own and value not in (None, [], ())}
    work = Work(folder=folder, options=Options.read(config, given), count=count, shard=Shard.parse(shard))

    from faket_aug.cli._console import showing_progress, showing_warnings

    with showing_progress("tomograms") as (console, progress), showing_warnings(console):
        done = run(work, progress)
    typer.echo(_summary(folder, done))


def _summary(folder: Path, done: Done) -> str:
    there = f", {done.of - done.made} were there" if done.made < done.of else ""
    picture = f"; look at {done.preview}" if done.preview is not None else ""
    tomograms = "tomogram" if done.made == 1 else "tomograms"
    return f"{done.made} {tomograms} written into {folder}{there}{picture}"
