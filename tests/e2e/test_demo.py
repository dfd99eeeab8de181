"""The demo modules on the INT8 backbone: 20 held-out messages each, beside the backbone alone."""
import sys
from pathlib import Path

from harness import MODEL, PETS, ROOT, Server, case, main, together

sys.path.insert(0, str(ROOT / "deploy/demo"))
from messages import TASKS, dataset


def answer(s, model, text):
    status, a, _ = s.post("/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 64, "temperature": 0})
    assert status == 200, a
    return a["choices"][0]["message"]["content"].strip()


@case
def modules_answer_as_trained():
    args = [a for t in sorted(TASKS) for a in ("--pet", f"{t}={PETS}/{t}.pet")]
    bad = []
    with Server(*args) as s:
        for task in sorted(TASKS):
            rows = dataset(task, 20, seed=3, held_out=True)
            got = together([lambda t=t: answer(s, task, t) for t, _ in rows])
            base = together([lambda t=t: answer(s, Path(MODEL).name, t) for t, _ in rows])
            right = sum(g == want for g, (_, want) in zip(got, rows))
            print(f"  {task}: {right} of 20 as trained, the backbone alone {sum(b == want for b, (_, want) in zip(base, rows))}")
            for g, (_, want) in zip(got, rows):
                if g != want:
                    print(f"    {g}  instead of  {want}")
            if right < 18:
                bad.append(task)
    assert not bad, f"fewer than 18 of 20 answers as trained: {bad}"


main()
