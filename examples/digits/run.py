"""Train a few models on handwritten digits and compare them: prepare → train, in parallel → compare.

Run it with `make demo`, or `python examples/digits/run.py`; see README.md beside this file.
"""

from __future__ import annotations

from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from tasks import compare, prepare, train

import nemo_run as run

#: By the name of the job that trains it: how each model is made, there.
MODELS = {
    "logistic-c0.01": run.Config(LogisticRegression, C=0.01, max_iter=1000),
    "logistic-c1": run.Config(LogisticRegression, C=1, max_iter=1000),
    "svm-linear": run.Config(SVC, kernel="linear"),
    "svm-rbf": run.Config(SVC, kernel="rbf", C=10),
    "forest-20": run.Config(RandomForestClassifier, n_estimators=20),
    "forest-300": run.Config(RandomForestClassifier, n_estimators=300),
}


def main() -> None:
    # Models train side by side, so each gets one thread.
    executor = run.LocalExecutor(env_vars={"OMP_NUM_THREADS": "1"}, timeout=300)
    with run.Experiment("digits", executor=executor) as exp:
        data = exp.add(prepare, name="prepare")
        trained = []
        for name, model in MODELS.items():
            task = run.Partial(train, model, name=name)
            task.broadcast(random_state=0)  # on whatever in it takes one
            trained.append(exp.add(task, name=name, dependencies=[data]))
        report = exp.add(run.Partial(compare, trained), name="compare", dependencies=trained)
        results = exp.run()

    best = results[report]
    print(f"\nOf {len(trained)} models {best['best']} reads most digits right: {best['accuracy']:.1%}.")
    print(f"The report: {exp.artifacts(report) / best['report']}")
    print(f"  its plot: {exp.artifacts(report) / best['plot']}")


if __name__ == "__main__":
    main()
