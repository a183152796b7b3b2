"""The prisoner's dilemma as a page: choose a model and a scenario, see what kept KV saves.

    pip install '.[cpu,demo]'
    marimo run examples/demo/prisoners_dilemma.py

The page shows a dry run without a model first. Everything it does is ``examples/prisoners_dilemma.py``.
"""

import marimo

app = marimo.App(width="medium", app_title="The prisoner's dilemma")


@app.cell
def _():
    import sys
    from pathlib import Path

    import marimo as mo

    examples = Path(__file__).parents[1]
    sys.path.insert(0, str(examples))
    import prisoners_dilemma as example

    return example, examples, mo


@app.cell
def _(examples, mo):
    wanted = (
        mo.md("{model}\n\n{dry}\n\n{scenario}\n\n{tokens}")
        .batch(
            model=mo.ui.text(label="model (empty: the starter model)", full_width=True),
            dry=mo.ui.checkbox(value=True, label="dry run, without a model"),
            scenario=mo.ui.text(str(examples / "scenarios/prisoners_dilemma.toml"), label="scenario", full_width=True),
            tokens=mo.ui.slider(8, 128, value=24, label="tokens of a reply", show_value=True),
        )
        .form(submit_button_label="Run")
    )
    mo.vstack(
        [mo.md("# The prisoner's dilemma\nFour agents, 25 turns, five phases: with their KV kept, and cold."), wanted]
    )
    return (wanted,)


@app.cell
def _(example, mo, wanted):
    asked = wanted.value or {"model": "", "dry": True, "scenario": "", "tokens": 24}
    argv = ["--max-tokens", str(asked["tokens"]), *(["--echo"] if asked["dry"] else [])]
    argv += ["--model", asked["model"]] if asked["model"] else []
    argv += ["--scenario", asked["scenario"]] if asked["scenario"] else []
    with mo.status.spinner("25 turns, twice"):
        found = example.run(example.parsed(argv))
    first, second = found.scenario["prisoners"]
    payoffs = [dict(zip(("phase", first, second, "years"), row, strict=True)) for row in found.payoffs]
    phases = [{key: round(x, 1) if isinstance(x, float) else x for key, x in row.items()} for row in found.phases()]
    mo.vstack(
        [
            mo.md("A dry run: the figures say nothing of a model." if asked["dry"] else "On the model."),
            mo.ui.table(phases, selection=None, show_download=False),
            mo.Html(found.plot()),
            mo.plain_text(found.totals()),
            mo.ui.table(payoffs, selection=None, show_download=False),
        ]
    )
    return


if __name__ == "__main__":
    app.run()
