"""Ten experts as a page: choose a model and a scenario, see what a question costs cold, hot and after a restart.

    pip install '.[cpu,demo]'
    marimo run examples/demo/routing.py

The page shows a dry run without a model first. Everything it does is ``examples/routing.py``.
"""

import marimo

app = marimo.App(width="medium", app_title="Ten experts")


@app.cell
def _():
    import sys
    from pathlib import Path

    import marimo as mo

    examples = Path(__file__).parents[1]
    sys.path.insert(0, str(examples))
    import routing as example

    return example, examples, mo


@app.cell
def _(examples, mo):
    wanted = (
        mo.md("{model}\n\n{dry}\n\n{scenario}\n\n{experts}")
        .batch(
            model=mo.ui.text(label="model (empty: the starter model)", full_width=True),
            dry=mo.ui.checkbox(value=True, label="dry run, without a model"),
            scenario=mo.ui.text(str(examples / "scenarios/routing.toml"), label="scenario", full_width=True),
            experts=mo.ui.slider(1, 10, value=3, label="experts", show_value=True),
        )
        .form(submit_button_label="Run")
    )
    mo.vstack([mo.md("# Ten experts\nEach has a text of its own: asked cold, hot, and after a restart."), wanted])
    return (wanted,)


@app.cell
def _(example, mo, wanted):
    asked = wanted.value or {"model": "", "dry": True, "scenario": "", "experts": 3}
    argv = ["--experts", str(asked["experts"]), *(["--echo"] if asked["dry"] else [])]
    argv += ["--model", asked["model"]] if asked["model"] else []
    argv += ["--scenario", asked["scenario"]] if asked["scenario"] else []
    with mo.status.spinner("asking, in two processes"):
        rows = example.run(example.parsed(argv))
    phases = [
        {key: round(x, 1) if isinstance(x, float) else x for key, x in row.items()} for row in example.summary(rows)
    ]
    mo.vstack(
        [
            mo.md("A dry run: the figures say nothing of a model." if asked["dry"] else "On the model."),
            mo.ui.table(phases, selection=None, show_download=False),
            mo.Html(example.plot(rows)),
            mo.plain_text(example.routed(rows)),
        ]
    )
    return


if __name__ == "__main__":
    app.run()
