"""What --json prints, command by command: the tests compare the commands with it, docs/cli.md shows it."""

INGEST = {
    "status": '"read", "resumed", "already read" or "interrupted" (exit code 130; the same command goes on)',
    "output": "path of the memory file",
    "model": "what the model is called",
    "documents": "list of {name, sha256, complete}, all that the memory holds, in reading order",
    "tokens": "tokens in the memory",
    "pending": "tokens after the last whole chunk: scored, not yet learned from",
    "skipped": "updates that the guard refused",
    "loss": "mean of all tokens, nats per token; null if there are none",
    "bytes": "size of the memory file",
    "new_tokens": "tokens read by this call",
    "seconds": "time this call read for; null if it read nothing",
    "tokens_per_second": "of this call; null if it read nothing",
}
SUMMARIZE = {
    "text": "the summary",
    "tokens": "how many tokens it has",
    "route": "how it was made",
    "model": "what the model is called",
    "documents": "list of names",
}
ASK = {
    "question": "as it was asked",
    "text": "the answer",
    "route": '"memory" or "lookup": the way that was taken',
    "reason": "why it went that way, and how the answer was found",
    "verified": "whether every number, name and quoted string of the answer stands in the evidence",
    "evidence": "list of {quote, page, start, end, score, chapter, document, memory}; quote is text[start:end] of the "
    "memory's text",
    "seconds": "time the answer took",
    "model": "what the model is called",
    "documents": "list of names",
}
ROUTE = {
    "route": '"memory" or "lookup"; one object for each question',
    "probability": "calibrated probability that the question asks for something exact, so that lookup is right",
    "reason": "in words",
}
CONTINUE = {
    "text": "the continuation",
    "seconds": "time it took",
    "model": "what the model is called",
    "documents": "list of names",
}
INSPECT = {
    "path": "as given",
    "format_version": "of the file",
    "package_version": "of the ttt-docs that wrote it",
    "created": "ISO 8601, UTC",
    "model": "what the model is called",
    "fingerprint": "sha256 over the model's configuration and weights",
    "reading": "{chunk, window, sinks, learn, inner_rule, inner_lr, inner_lr_factors, inner_clip, guard}",
    "precision": 'how the fast weights are stored: "float32", "bfloat16" or "compact"',
    "tokens": "tokens in the memory",
    "position": "tokens in whole chunks",
    "chunks": "whole chunks",
    "pending": "tokens after the last whole chunk",
    "skipped": "updates that the guard refused",
    "documents": "list of {name, sha256, start, end, complete, spans: {kind: count}}; start and end in characters",
    "text": "whether the documents' text is in the file",
    "fast": "{blocks, dtype, w1, w2, w3, terms (if compact)}: blocks and shapes; {blocks: []} if nothing was learned",
    "window": "{blocks, dtype, shape}",
    "bytes": "{file, header, fast, window, tokens, nll, text}",
    "extra": "notes of whoever wrote the file",
    "loss": "mean of all tokens, nats per token; null if there are none",
    "loss_by_quarter": "the same for each quarter of the tokens, in reading order",
    "fast_norms": "{block: {w1, w2, w3}}: Frobenius norm of each fast weight matrix",
}
ENTRY = {
    "key": "of the entry: hash of its documents, hash of model and reading parameters",
    "documents": "list of {name, sha256, metadata}",
    "model": "what the model is called",
    "fingerprint": "sha256 over the model's configuration and weights",
    "reading": "{chunk, window, sinks, learn, inner_rule, inner_lr, inner_lr_factors, inner_clip, guard}",
    "tokens": "tokens in the memory",
    "nbytes": "size of the entry",
    "created": "ISO 8601, UTC",
    "extra": "notes of whoever wrote the memory",
}
STORE_LIST = {
    "store": "as given",
    "entries": "list of objects as `store show` prints",
    "unfinished": "{key: bytes} of what readings that did not end have kept",
}
STORE_VERIFY = {"store": "as given", "intact": "how many entries", "damaged": "list of {key, reason}"}
STORE_GC = {"store": "as given", "removed": "list of names", "dry_run": "true: nothing was removed"}
CORPUS_INGEST = {
    "store": "as given",
    "read": "documents read by this call",
    "there_already": "documents that were in the store (with --resume), or several times in the corpus",
    "failed": "list of {source, reason}; not empty: exit code 1",
    "tokens": "read by this call",
    "seconds": "time it took",
    "tokens_per_second": "of this call",
    "documents": "list of {source, status, key, tokens, reason}",
}
MODEL = {
    "name": "as given",
    "parameters": "how many",
    "licence": "of the weights; null if unknown",
    "repository": "where the weights come from; registry names only",
    "credit": "whose work they are; registry names only",
    "weights": "which variant the name stands for, as NAME@VARIANT; null if none is installed; registry names only",
    "variants": "list of {name, from, installed, bytes}; registry names only",
    "installed": "whether the converted weights are in the cache",
    "folder": "where; null if not installed",
    "bytes": "size on disk; only if installed",
    "fingerprint": "sha256 over configuration and weights; only if installed",
    "source": "what was converted; only if installed",
    "created": "ISO 8601; only if installed",
}
MODELS_LIST = {"models": "list of objects as `models info` prints", "cache": "folder of the cache"}
MODELS_PULL = {
    "name": "as given",
    "weights": "with the variant: NAME@VARIANT",
    "folder": "where the converted weights are",
}
MODELS_PACK_ADAPTER = {
    "file": "the packed adapter",
    "bytes": "its size",
    "bytes_before": "the size of the one it was made from",
}
MODELS_IMPORT_ORBAX = {"folder": "that was written"}
MODELS_RM = {"name": "as given", "removed": "false: there was nothing to remove"}
TRAIN = {
    "folder": "of the run",
    "exported": "the trained model's folder, or its adapter.safetensors",
    "steps": "of the whole run",
    "tokens": "in training sequences, of the whole run",
    "loss": "of the last step, nats per token",
    "valid_loss": "at the end, nats per token; null without validation data",
    "seconds": "of this call",
}
EVAL_CONTEXT = {
    "results": "list of {system, length, nats, books: {id: nats}}; nats: mean over the books at least so long, or null",
    "positions": "list of {system, start, end, nats, books}: the tokens between two positions; books: how many",
    "readings": "list of {system, book, sha256, fingerprint, reading, nats: [of each 1,024 tokens], skipped, seconds}",
}
EVAL_NEEDLE = {
    "results": "list of {task, length, route, samples, accuracy, seconds_per_question}",
    "depths": "the same for each tenth of the text, where there is one needle",
}
ENV = {
    "versions": "{name: version} of ttt-docs, python and the packages that matter; null: not installed",
    "platform": "operating system and machine",
    "device": "what is used unless --device says otherwise",
    "devices": "all that could be used",
    "dtype": "{device: dtype used unless --dtype says otherwise}",
    "cpu": "{capability, bf16, amx}: what the CPU's products can use",
    "threads": "that torch uses",
    "kernels": "{TTT_DOCS_KERNELS, native, chosen: {device: name}}; the variable's value is null if it is not set; "
    "native: where the compiled kernels came from, or why there are none",
    "cache": "{folder, memories, bytes}: where models and memories are kept, how many memories, their size",
}

#: By command, as typed after `ttt-docs`.
SHAPES = {
    "ingest": INGEST,
    "summarize": SUMMARIZE,
    "ask": ASK,
    "route": ROUTE,
    "continue": CONTINUE,
    "inspect": INSPECT,
    "store list": STORE_LIST,
    "store show": ENTRY,
    "store verify": STORE_VERIFY,
    "store gc": STORE_GC,
    "corpus ingest": CORPUS_INGEST,
    "models list": MODELS_LIST,
    "models pull": MODELS_PULL,
    "models info": MODEL,
    "models import-orbax": MODELS_IMPORT_ORBAX,
    "models pack-adapter": MODELS_PACK_ADAPTER,
    "models rm": MODELS_RM,
    "train": TRAIN,
    "eval context": EVAL_CONTEXT,
    "eval needle": EVAL_NEEDLE,
    "env": ENV,
}
