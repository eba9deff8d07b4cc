"""--help: config groups with their options, the most used keys, examples. Standard library only, so it is instant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from krill.config import paths
from krill.tables import fit_table

COMMAND_EXAMPLES: dict[str, list[str]] = {
    "train": [
        "krill-train",
        "krill-train model=tiny_ko optimizer=muon_keller",
        "krill-train data=files data.paths=[a.parquet,b.jsonl] steps=1000",
        "krill-train -m lr=1e-3,3e-3",
        "krill-train -m lr=1e-3,3e-3 hardware=slurm_gpu",
        "krill-train from=last lr=1e-3",
        "krill-train continue=last steps=2000",
    ],
    "plan": [
        "krill-plan model=llama_350m tokenizer=bpe_32k plan.device=h100 plan.price_per_hour=2.5",
        "krill-plan experiment=tiny_ko hardware=gpus plan.device=a100 plan.count=8",
        "krill-plan -m model=llama_125m,llama_350m plan.device=h100,l4",
        "krill-plan budget=8h plan.device=h100 plan.count=8 tokenizer=bpe_32k",
    ],
    "preprocess": [
        "krill-preprocess",
        "krill-preprocess data=files data.paths=[a.parquet,b.jsonl] tokenizer=bpe_32k",
        "krill-preprocess data=files data.paths=[text/] filters=web dry_run=true",
        "krill-preprocess -m data=files data.paths=[text/] data.num_tasks=64 'data.task=range(0,64)' name=tasks",
    ],
    "tokenizer": [
        "krill-tokenizer tokenizer.vocab_size=8192",
        "krill-tokenizer data=files data.paths=[a.txt] tokenizer=bpe_32k output=my_tokenizer",
    ],
    "inspect": [
        "krill-inspect",
        "krill-inspect outputs/data/…",
        "krill-inspect data=files data.paths=[a.parquet,b.jsonl] tokenizer=bpe_32k sequence_lens=[512,2048]",
        "krill-inspect format=json",
        "krill-inspect tokenizers=[bpe_4k,my_tokenizer,gpt2]",
        'krill-inspect tokenizer=bpe_4k text="안녕하세요 hello"',
        'krill-inspect model=last text="안녕하세요 hello" lens=true attention=0.0 output=look',
    ],
    "infer": [
        'krill-infer prompt="Once upon a time"',
        "krill-infer llama_nano",
        "krill-infer prompts=prompts.jsonl n=4 temperature=1 output=answers",
        'krill-infer -m model=rates/best temperature=0.2,0.8 prompt="Once upon a time"',
    ],
    "evaluate": [
        "krill-evaluate",
        "krill-evaluate llama_nano tasks=[text,korean_pairs]",
        "krill-evaluate rates/best last tasks=text",
    ],
    "export": [
        "krill-export",
        "krill-export llama_nano dtype=f16 output=my_model",
        "krill-export llama_nano format=gguf output=my_model.gguf",
    ],
    "serve": [
        "krill-serve",
        "krill-serve llama_nano serve.port=8080",
        "KRILL_API_KEY=… krill-serve llama_nano serve.host=0.0.0.0",
    ],
}

COMMAND_KEYS: dict[str, list[tuple[str, str]]] = {
    "train": [
        ("steps=N or epochs=N", "how long; setting one clears the other"),
        ("lr=X", "learning rate on the AdamW scale, for every optimizer"),
        ("seed=N", "seed of the weights and of the order of rows"),
        ("data.paths=[…]", "your own text, with data=files: files, folders or globs"),
        ("sequence_len=N", "tokens per row"),
        ("batch.micro_batch_size=N", "rows per device and forward pass"),
        ("device=auto|cpu|cuda", "where the model is computed"),
        ("eval_every=N save_every=N", "steps between validations, and between checkpoints"),
        ("evaluation.tasks=[…] evaluation.every=N", "tasks to evaluate the model on, and how often"),
        ("trackers=[…]", "wandb, tensorboard, trackio"),
        ("hub.push=true hub.id=user/name", "upload the final model to the Hugging Face Hub"),
        ("sweep.search=tpe sweep.trials=N", "with -m: points that a search chooses, not all combinations"),
        ("resume=auto|false|RUN", "auto continues an unfinished run of the same configuration"),
        ("continue=RUN steps=N", "train a run for longer, a finished one too"),
        ("detach=true", "with hardware=slurm_…: submit and return"),
        ("output=FOLDER", "folder of the result"),
        ("dry_run=true", "write nothing, print what would be done"),
    ],
    "plan": [
        ("plan.device=NAME", "device to plan for, such as h100, a100 or l4; by default that of this machine"),
        ("plan.count=N", "number of devices, each with one rank"),
        ("budget=1e19 or budget=8h", "propose a model and its length for FLOPs or for hours"),
        ("plan.price_per_hour=X", "price of one device for an hour"),
        ("plan.mfu=X", "model FLOPs utilization, instead of the calibration's"),
        ("plan.devices=FILE", "a YAML file with devices of your own"),
        ("steps=N or epochs=N", "how long; setting one clears the other"),
        ("sequence_len=N", "tokens per row"),
        ("batch.micro_batch_size=N", "rows per device and forward pass"),
        ("batch.tokens=N", "tokens per optimizer step"),
        ("format=json", "all figures, for scripts"),
    ],
    "preprocess": [
        ("data.paths=[…]", "files, folders or globs, with data=files"),
        ("data.text_column=text", "the column that holds the text"),
        ("data.min_chars=N", "shorter documents are dropped"),
        ("data.minhash.threshold=0.8", "near duplicates are dropped; needs the extra dedup"),
        ("data.pii=mask", "e-mail addresses, phone and resident numbers become placeholders"),
        ("data.engine=auto|hf|fast", "fast is gigatoken, of the extra fast; the tokens are the same"),
        ("data.workers=N", "processes; by default chosen by the size of the input"),
        (
            "data.num_tasks=N data.task=K",
            "one of N tasks that share the work; without data.task they are merged",
        ),
        ("output=FOLDER", "folder of the result"),
        ("dry_run=true", "write nothing, print what would be done"),
    ],
    "tokenizer": [
        ("tokenizer.vocab_size=N", "entries in all, met exactly"),
        ("tokenizer.normalizer=none|nfc", "Unicode normalization"),
        ("output=FOLDER", "folder of the result"),
        ("dry_run=true", "write nothing, print what would be done"),
    ],
    "inspect": [
        ("data=FOLDER", "a token store, instead of an option; an argument without = means it as well"),
        ("tokenizer=FOLDER", "its tokenizer, where it is not found automatically"),
        ("tokenizers=[…]", "options, folders or Hub ids, compared on held-out text"),
        ("text=TEXT", "show the tokens of a text, taken literally"),
        ("model=RUN text=TEXT", "their probabilities by a trained model, and the alternatives"),
        ("lens=true", "with model= and text=: what each layer would predict"),
        ("attention=LAYER.HEAD", "with model= and text=: where a head attends to, as a picture"),
        ("rows=N or row=K", "N rows chosen by seed, or row K; full=true shows them whole"),
        ("sequence_len=N", "tokens per row; sequence_lens=[…] compares further lengths"),
        ("packing=best_fit|wrapped", "how documents fill rows"),
        ("format=text|json", "json: all statistics, for scripts"),
        ("plot=FILE.png", "plot lengths and sources, or the metrics of the tokenizers"),
        ("verify=true", "hash every file of the store"),
    ],
    "infer": [
        ("model=FOLDER", "a run, a model folder, a glob or a Hub id; an argument without = means it as well"),
        ("prompt=TEXT", "the text to continue, taken literally; without it a session begins"),
        ("prompts=FILE", "many prompts, in batches: .jsonl, .txt, .parquet, or - for standard input"),
        ("max_new_tokens=128", "length of the answer"),
        ("temperature=0.6", "0: always the most likely token; also top_k, top_p, min_p, typical_p, …"),
        ("stop=[TEXT,…]", "texts at which the answer ends"),
        ("n=N", "answers to each prompt, with the seeds seed, seed + 1, …"),
        ("chat=auto|true|false", "answer in the model's chat template; system=TEXT is its system message"),
        ("inspect=true", "show the probability of each token of the answer, and its alternatives"),
        ("experiment=NAME", "the newest finished run of that experiment"),
        ("output=FOLDER", "folder of answers.jsonl, and of tokens.html and tokens.json"),
    ],
    "evaluate": [
        (
            "model=FOLDER",
            "a run, a model folder or a Hub id; all runs of a sweep or a glob; arguments without = mean it as well",
        ),
        (
            "tasks=[NAME,…]",
            "text, korean_pairs, english_pairs, cloze; auto: those in the languages of the text; a name of lm-eval, "
            "olmo:NAME, or your own FILE.yaml, FILE.py",
        ),
        ("limit=N", "items of each phenomenon; all documents of text are scored"),
        ("few_shot=N", "solved examples before each question of lm-eval's tasks"),
        ("contamination=true", "count the items that are in the training text"),
        ("evaluation.prompts=[TEXT,…]", "print what the model writes after these prompts"),
        ("again=true", "evaluate again what has been evaluated"),
        ("pool_seeds=false", "each run is a row, also those that differ only in seed"),
        ("format=json", "all scores, for scripts"),
        ("output=FOLDER", "folder in which evaluations/ is written"),
        ("dry_run=true", "write nothing, print what would be done"),
    ],
    "export": [
        ("model=FOLDER", "a run, a model folder, a glob or a Hub id; an argument without = means it as well"),
        ("format=hf|gguf", "a folder for transformers, vLLM and lm-eval, or a file for llama.cpp and Ollama"),
        ("dtype=bf16|f16|f32", "data type of the weights"),
        ("output=PATH", "folder (hf) or file (gguf) to create"),
        ("dry_run=true", "write nothing, print what would be done"),
    ],
    "serve": [
        ("model=FOLDER", "a run, a model folder, a glob or a Hub id; an argument without = means it as well"),
        ("serve.port=8000", "0: any free one"),
        ("serve.host=127.0.0.1", "0.0.0.0: for other machines too; needs a key"),
        ("serve.api_key=KEY", "better set in the environment: KRILL_API_KEY"),
        ("serve.max_batch_size=N", "answers generated at once"),
        ("serve.max_queue=N", "requests that wait; further ones get status 429"),
        ("serve.limits.new_tokens=N", "longest answer; serve.limits has the other limits of a request"),
        ("hardware.threads=N", "CPU threads"),
        ("dry_run=true", "print what would be served"),
    ],
}

_COMMAND_GROUPS = {
    "preprocess": ["data", "filters", "tokenizer", "hardware", "experiment"],
    "tokenizer": ["data", "filters", "tokenizer", "hardware", "experiment"],
    "inspect": ["data", "filters", "tokenizer", "hardware", "experiment"],
    "infer": ["hardware"],
    "evaluate": ["evaluation", "hardware"],
    "export": ["hardware"],
    "serve": [],
}

_POSITIONALS = {
    "evaluate": "[MODEL …] ", "export": "[MODEL] ", "infer": "[MODEL] ", "inspect": "[TOKENS] ", "serve": "[MODEL] ",
}  # fmt: skip
"""The arguments without "=" of a command, as its usage has them."""

_FLAGS = [
    ("--help KEY", "what a key means, or all keys of a section: --help sequence_len, --help hardware"),
    ("-m", "sweep: every combination of comma-separated values, each in its own folder"),
    ("--cfg job [--resolve]", "print the whole configuration as YAML"),
    ("--config-dir DIR", "your own configurations; ./conf and $KRILL_CONF are read too"),
    ("-sc install=bash", 'completion: eval "$(krill-… -sc install=bash)"'),
]


def format_help(command: str, folders: Sequence[Path], width: int | None = None) -> str:
    """Returns the help of a command; `folders`: configuration folders, the one with precedence first.

    `width`: of the terminal; None: not a terminal.
    """
    primary = next(path for folder in folders if (path := folder / f"{command}.yaml").is_file())
    lines = [
        f"krill-{command}: {paths.read_config_description(primary)}",
        "",
        f"usage: krill-{command} {_POSITIONALS.get(command, '')}[key=value …]",
    ]
    groups = paths.list_config_groups() if command in ("train", "plan") else _COMMAND_GROUPS.get(command, [])
    for group in groups:
        lines += ["", f"{group}="]
        options = _list_options(group, folders)
        lines += _format_table(((name, paths.read_config_description(file)) for name, file in options), width)
    flags = [item for item in _FLAGS if not (item[0] == "-m" and command in ("inspect", "serve"))]
    lines += [
        "",
        "keys",
        *_format_table(COMMAND_KEYS[command], width),
        "",
        "flags",
        *_format_table(flags, width),
        "",
        "examples",
    ]
    lines += [f"  {line}" for line in COMMAND_EXAMPLES[command]]
    return "\n".join(lines)


def _list_options(group: str, folders: Sequence[Path]) -> list[tuple[str, Path]]:
    return sorted(paths.list_config_options(group, folders).items())


def _format_table(rows: Iterable[tuple[str, str]], width: int | None) -> list[str]:
    return fit_table(("", ""), rows, width, left=(0, 1), indent="  ", fold=(0, 1))[1:]
