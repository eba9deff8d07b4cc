"""A model as lm-eval sees it. Importing this module imports lm-eval."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM

from krill.evaluation.choices import encode_continuations
from krill.evaluation.rolling import EncodedText, score_texts
from krill.evaluation.subject import Subject
from krill.evaluation.token_scorer import Report
from krill.evaluation.token_sequence import TokenSequence
from krill.inference.engine import Generation, GenerationEngine
from krill.inference.generate import encode_prompt
from krill.inference.sampling import SamplingParams

MAX_NEW_TOKENS = 256
"""lm-eval's default."""


class SubjectLM(LM):
    """Answers the requests of lm-eval's tasks; every rank gets all of them, and all answers."""

    def __init__(self, subject: Subject, report: Report) -> None:
        super().__init__()
        self._subject, self._report = subject, report
        self._truncated: set[tuple[str, int]] = set()

    @property
    def truncated(self) -> int:
        """The number of documents with a request whose context was cut at its beginning."""
        return len(self._truncated)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns the logprob of each request's continuation after its context, and whether it is the greedy one.

        The choices of a document share what they have in common at their beginning.
        """
        subject = self._subject
        encoded = encode_continuations(
            [request.args for request in requests], subject.encoder, subject.context_length
        )
        documents: dict[Any, list[int]] = defaultdict(list)
        for index, (request, (sequence, is_cut)) in enumerate(zip(requests, encoded, strict=True)):
            document = (request.task_name, request.doc_id)
            if is_cut:
                self._truncated.add(document)
            if sequence.num_scored:
                documents[document].append(index)
        questions: list[list[TokenSequence]] = [
            [encoded[index][0] for index in indices] for indices in documents.values()
        ]
        scores = subject.scorer.score(questions, self._report)
        answers = [(0.0, True)] * len(requests)  # of a continuation without tokens
        for question, indices in enumerate(documents.values()):
            for position, index in enumerate(indices):
                score = scores[question, position]
                answers[index] = (score.logprob, score.is_greedy)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Returns the logprob of each request's text, in windows that repeat one token, as lm-eval's own."""
        subject = self._subject
        texts = [request.args[0] for request in requests]
        encoded = [tuple(ids.tolist()[:-1]) for ids in subject.encoder.encode_documents(texts)]
        scored = [index for index, ids in enumerate(encoded) if len(ids) > 1]
        scores = score_texts(
            subject.scorer,
            [EncodedText(encoded[index], len(texts[index].encode())) for index in scored],
            subject.context_length,
            1,
            self._report,
        )
        answers = [0.0] * len(requests)
        for index, nats in zip(scored, scores.nats.tolist(), strict=True):
            answers[index] = -nats
        return answers

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns the answer to each request's prompt, up to the texts that end it.

        Every rank generates all of them. A prompt that leaves no room for an answer is cut at its beginning.
        """
        engine = GenerationEngine(self._subject.model, self._subject.tokenizer)
        generations = [self._build_generation(seed, request) for seed, request in enumerate(requests)]
        engine.run(generations)
        self._report(len(generations), len(generations))
        return [generation.text for generation in generations]

    def _build_generation(self, seed: int, request: Any) -> Generation:
        prompt, settings = request.args
        until = settings.get("until") or []
        samples = settings.get("do_sample", settings.get("temperature", 0) > 0)
        length = int(settings.get("max_gen_toks", settings.get("max_new_tokens", MAX_NEW_TOKENS)))
        context_length = self._subject.context_length
        length = min(length, context_length // 2)
        ids = encode_prompt(self._subject.tokenizer, prompt)
        if len(ids) + length > context_length:
            self._truncated.add((request.task_name, request.doc_id))
        params = SamplingParams(
            max_new_tokens=length,
            temperature=float(settings.get("temperature", 1.0)) if samples else 0.0,
            top_k=int(settings.get("top_k", 0)),
            top_p=float(settings.get("top_p", 1.0)),
            repetition_penalty=1.0,
            stop=tuple([until] if isinstance(until, str) else until),
            seed=seed,
        )
        return Generation(ids[-(context_length - length) :], params)
