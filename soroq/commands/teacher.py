"""train teacher-data: a local model answers, checks decide, and all is told."""

from dataclasses import dataclass
from pathlib import Path

from soroq import console
from soroq.core.errors import CheckpointError
from soroq.train.teacher import Answer, Checks, read_outline, write_teacher_data


@dataclass(frozen=True)
class TeacherRequest:
    """The options of `soroq train teacher-data`, as typed."""

    outline: Path
    out: Path
    model: str
    tries: int
    max_tokens: int
    temperature: float
    words: tuple[int, int]
    language: str
    device: str
    resume: bool


def run_teacher_data(request: TeacherRequest) -> None:
    tasks = read_outline(request.outline)
    answer = _answerer(request)
    checks = Checks(request.language, request.words)
    with console.train_progress("question") as listen:
        tally = write_teacher_data(
            tasks,
            request.out,
            answer,
            Path(request.model).name,
            checks,
            tries=request.tries,
            resume=request.resume,
            listen=listen,
        )
    rows = [["accepted", str(tally.accepted)]]
    rows += [[f"rejected: {reason}", str(n)] for reason, n in tally.rejected.most_common()]
    console.table(f"{request.out}: {len(tasks)} questions", ["answers", "n"], rows)
    console.out.print("read by nobody so far: read them before you train on them", highlight=False)


def _answerer(request: TeacherRequest) -> Answer:
    """Return what answers a question with the model, through its chat template."""
    import torch

    from soroq.loading import load, load_tokenizer

    tokenizer = load_tokenizer(request.model)
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"{request.model} has no chat template, so it was not made to answer; give a model "
            "that was tuned on conversations"
        )
    network = load(request.model, device=request.device)
    given = network.generation_config.eos_token_id
    stops = given if isinstance(given, list) else [given]

    def answer(question: str, seed: int) -> tuple[str, bool]:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(request.device)
        torch.manual_seed(seed)
        sampling = {"do_sample": True, "temperature": request.temperature}
        with torch.no_grad():
            result = network.generate(
                **ids,
                max_new_tokens=request.max_tokens,
                **(sampling if request.temperature else {"do_sample": False}),
            )
        new = result[0, ids["input_ids"].shape[1] :].tolist()
        return str(tokenizer.decode(new, skip_special_tokens=True)), bool(new) and new[-1] in stops

    return answer
