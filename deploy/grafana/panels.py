"""The dashboard's panels, row by row: their queries and descriptions.

``$S`` and ``$T`` in a query select the chosen instances of service and trainer.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A panel of one or more queries."""

    title: str
    queries: dict[str, str]
    """PromQL by legend."""
    unit: str
    """Grafana's name of the unit."""
    description: str
    """Meaning of the values, and the ones that need attention."""
    kind: str = "lines"
    """lines, bars, number, heat or states."""
    width: int = 8
    """Width in columns, of 24."""
    stacked: bool = False
    logarithmic: bool = False
    least: float | None = 0
    most: float | None = None
    alarms: dict[str, float | None] = field(default_factory=dict)
    """Least value by colour; the first colour has None."""


def _quantile(q: float, metric: str, selector: str) -> str:
    return f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket{{{selector}}}[$__rate_interval])))"


def _mean(metric: str, selector: str, by: str) -> str:
    parts = (f"sum by ({by}) (rate({metric}_{part}{{{selector}}}[$__rate_interval]))" for part in ("sum", "count"))
    return " / ".join(parts)


def _rate(metric: str, selector: str, by: str = "") -> str:
    return f"sum{by and f' by ({by}) '}(rate({metric}{{{selector}}}[$__rate_interval]))"


RED_IF_ANY: dict[str, float | None] = {"green": None, "red": 1e-9}

GLANCE = [
    Panel(title="Replicas ready", kind="number", width=3, unit="none", alarms={"red": None, "green": 1},
          queries={"": "sum(max by (instance) (lithograph_ready{$S}))"}, description="0: no requests are served. See /readyz."),
    Panel(title="Requests", kind="number", width=3, unit="reqps",
          queries={"": _rate("lithograph_requests_total", "$S")}, description="Per second, of all outcomes."),
    Panel(title="Pictures", kind="number", width=3, unit="none",
          queries={"a minute": f"60 * {_rate('lithograph_pictures_total', '$S')}"}, description="Generated, per minute."),
    Panel(title="Latency, 95th percentile", kind="number", width=4, unit="s",
          alarms={"green": None, "orange": 20, "red": 40},
          queries={"": _quantile(0.95, "lithograph_request_seconds", '$S,status="200"')},
          description="From a request's arrival to its pictures. The objective is 40 s."),
    Panel(title="Errors", kind="number", width=3, unit="percentunit", alarms={"green": None, "orange": 0.01, "red": 0.1},
          queries={"": "lithograph:request_errors:ratio_rate5m"}, description="Share of replies that are 5xx other than 504, over 5 minutes."),
    Panel(title="Waiting", kind="number", width=3, unit="none",
          queries={"": "sum(lithograph_queued_requests{$S})"}, description="Requests that wait for rows or slots."),
    Panel(title="What is served", kind="number", width=5, unit="none",
          queries={"{{flavour}} {{hash}}, {{precision}}, {{dtype}} on {{device}}, {{version}}":
                   "count by (flavour, hash, precision, dtype, device, version) (lithograph_model_info{$S})"},
          description="Replicas by model. Two lines are normal during an upgrade; otherwise replicas give different pictures."),
]  # fmt: skip

REQUESTS = [
    Panel(title="Requests by status", kind="bars", unit="reqps", stacked=True,
          queries={"{{status}}": _rate("lithograph_requests_total", "$S", "status")},
          description="429: the queue is full. 499: the client disconnected. 503: not ready, or storage failed. 504: time limit exceeded."),
    Panel(title="Latency", unit="s", logarithmic=True,
          queries={f"p{int(q * 100)}": _quantile(q, "lithograph_request_seconds", '$S,status="200"')
                   for q in (0.5, 0.95, 0.99)},
          description="From a request's arrival to its pictures."),
    Panel(title="Latency, all of it", kind="heat", unit="s",
          queries={"{{le}}": "sum by (le) (increase(lithograph_request_seconds_bucket{$S,status=\"200\"}[$__rate_interval]))"},
          description="Number of requests by latency. Two bands mean two kinds of requests, not slowness."),
    Panel(title="Where the time goes", unit="s", stacked=True,
          queries={"{{phase}}": _mean("lithograph_phase_seconds", '$S,outcome="drawn"', "phase")},
          description="Mean seconds of a drawn request by phase. queue: too little capacity. text: prompts not seen before. "
               "denoise: size, steps, or a slower device."),
    Panel(title="Given up", unit="reqps",
          queries={"refused: {{reason}}": _rate("lithograph_rejected_requests_total", "$S", "reason"),
                   "cancelled": _rate("lithograph_cancelled_requests_total", "$S")},
          description="Rejected requests, and those whose client disconnected before the end."),
    Panel(title="Ends by outcome", kind="bars", unit="reqps", stacked=True,
          queries={"{{outcome}}": _rate("lithograph_phase_seconds_count", '$S,phase="queue"', "outcome")},
          description="Requests of the engine by outcome: finished, failed, cancelled, or time limit exceeded."),
    Panel(title="Error budget", unit="none", logarithmic=True, least=None, alarms={"green": None, "orange": 6, "red": 14.4},
          queries={"errors, 1 h": "lithograph:request_errors:ratio_rate1h / 0.01",
                   "errors, 6 h": "lithograph:request_errors:ratio_rate6h / 0.01",
                   "latency, 1 h": "lithograph:request_slow:ratio_rate1h / 0.05",
                   "latency, 6 h": "lithograph:request_slow:ratio_rate6h / 0.05"},
          description="Consumption of the error budgets, relative to a month's allowance: 1 is just allowed, 14.4 pages an operator."),
    Panel(title="Jobs", kind="bars", unit="none", stacked=True,
          queries={"{{status}}": "sum by (status) (increase(lithograph_jobs_total{$S}[$__rate_interval]))"},
          description="Asynchronous jobs that ended, by the status of their result."),
    Panel(title="Pictures by size", kind="bars", unit="none", stacked=True,
          queries={"{{size}}": "sum by (size) (increase(lithograph_pictures_total{$S}[$__rate_interval]))"},
          description="In px. Different sizes do not share a forward."),
]  # fmt: skip

ENGINE = [
    Panel(title="Time per step", unit="s", logarithmic=True,
          queries={f"p{int(q * 100)}": _quantile(q, "lithograph_step_seconds", "$S") for q in (0.5, 0.95)},
          description="One forward of all pictures of one size. It grows with the number of rows, not with adapters."),
    Panel(title="Rows and queue", unit="none",
          queries={"rows being denoised, {{instance}} {{device}}": "lithograph_active_rows{$S}",
                   "waiting, {{instance}} {{device}}": "lithograph_queued_requests{$S}",
                   "in progress, {{instance}}": "lithograph_requests_in_progress{$S}",
                   "parked, {{instance}} {{device}}": "lithograph_parked_pictures{$S}"},
          description="Rows stay at --max-rows for each size while requests wait: the device is full. Add replicas."),
    Panel(title="Device memory", unit="bytes",
          queries={"{{kind}}, {{instance}} {{device}}": "lithograph_device_memory_bytes{$S}"},
          description="used: by tensors, or by the process on a CPU. reserved: kept by torch. peak: most used so far."),
    Panel(title="Steps", unit="ops",
          queries={"steps x pictures": _rate("lithograph_steps_total", "$S"),
                   "rows {{kind}}": _rate("lithograph_rows_total", "$S", "kind")},
          description="Throughput independent of the number of steps of a request. Rows are reused at qualities below exact."),
    Panel(title="Prompt cache", unit="percentunit", most=1,
          queries={"found": 'sum(rate(lithograph_prompt_cache_total{$S,result!="miss"}[$__rate_interval]))'
                            " / sum(rate(lithograph_prompt_cache_total{$S}[$__rate_interval]))"},
          description="Share of prompts whose embeddings were cached, in memory or on disk."),
    Panel(title="Engine restarts", kind="number", unit="none", alarms=RED_IF_ANY,
          queries={"in an hour": "sum(increase(lithograph_engine_restarts_total{$S}[1h]))"},
          description="Each restart loses the requests under way."),
]  # fmt: skip

ADAPTERS = [
    Panel(title="Slots", unit="none",
          queries={"used, {{instance}} {{device}}": "lithograph_adapter_slots_used{$S}",
                   "there, {{instance}} {{device}}": "lithograph_adapter_slots{$S}"},
          description="Adapters loaded in slots now."),
    Panel(title="Swaps", unit="ops",
          queries={"loaded": _rate("lithograph_adapter_slot_loads_total", "$S"),
                   "evicted": _rate("lithograph_adapter_slot_evictions_total", "$S")},
          description="Copies into a slot. Many evictions: more adapters in use than --adapter-slots."),
    Panel(title="Adapter cache", kind="bars", unit="ops", stacked=True,
          queries={"{{result}}": _rate("lithograph_adapter_cache_total", "$S", "result")},
          description="Source of a request's adapter: memory, disk or storage."),
    Panel(title="Adapter load time", unit="s", logarithmic=True,
          queries={"mean, {{instance}}": "sum by (instance) (lithograph_adapter_load_seconds_sum{$S})"
                                      " / sum by (instance) (lithograph_adapter_load_seconds_count{$S})"},
          description="Downloading, verifying and reading one version; the mean since the server started."),
    Panel(title="Pictures by adapter", kind="bars", unit="none", stacked=True,
          queries={"{{adapter}}": "sum by (adapter) (increase(lithograph_pictures_total{$S}[$__rate_interval]))"},
          description="Usage of adapters. Several adapters of one picture are joined by +."),
    Panel(title="Storage", kind="states", unit="none", width=4,
          queries={"reachable, {{instance}}": "lithograph_adapter_storage_reachable{$S}"},
          description="0: loaded adapters keep serving, but no new versions are found."),
    Panel(title="Refused versions", kind="number", width=4, unit="none", alarms=RED_IF_ANY,
          queries={"{{reason}}": "sum by (reason) (increase(lithograph_adapter_refusals_total{$S}[1h]))"},
          description="Versions published within the last hour but not served; GET /v1/adapters has the reasons."),
]  # fmt: skip

LASTING = [
    Panel(title="Jobs in storage", unit="none",
          queries={"open": "max(lithograph_jobs_open{$S})", "abandoned": "max(lithograph_jobs_abandoned{$S})",
                   "in progress, {{instance}}": "lithograph_jobs_in_progress{$S}"},
          description="open: not ended, or their webhook is not delivered. abandoned: their server has ended and none has room for "
                      "them, or the model. Only with --jobs-storage, but for those in progress."),
    Panel(title="Jobs taken up and expired", kind="bars", unit="none",
          queries={"taken up": "sum(increase(lithograph_jobs_taken_total{$S}[$__rate_interval]))",
                   "expired": "sum(increase(lithograph_jobs_expired_total{$S}[$__rate_interval]))"},
          description="taken up: from servers that ended or were stopped. expired: removed from storage after --job-ttl-seconds."),
    Panel(title="Webhooks", kind="bars", unit="none", stacked=True,
          queries={"{{result}}": "sum by (result) (increase(lithograph_webhooks_total{$S}[$__rate_interval]))"},
          description="postponed: the receiver failed, and is called again later. given_up: it never got the result; the log names the job."),
    Panel(title="Failed calls to the storage of jobs", kind="bars", unit="none", stacked=True,
          queries={"{{call}}": "sum by (call) (increase(lithograph_job_storage_errors_total{$S}[$__rate_interval]))"},
          description="All kinds: it cannot be reached. create and replace alone: it is full, or must not be written."),
    Panel(title="Batches", kind="bars", unit="none",
          queries={"in progress": "sum(lithograph_batches_in_progress{$S})",
                   "{{status}}": "sum by (status) (increase(lithograph_batches_total{$S}[$__rate_interval]))"},
          description="Under way, and ended by status. failed: their file was wrong. expired: not done within 24 hours."),
    Panel(title="Lines of batches", kind="bars", unit="none", stacked=True,
          queries={"{{result}}": "sum by (result) (increase(lithograph_batch_lines_total{$S}[$__rate_interval]))"},
          description="Lines with a result: pictures, or an error."),
]  # fmt: skip

KEYS = [
    Panel(title="Pictures by key", kind="bars", unit="none", stacked=True,
          queries={"{{key}}": "sum by (key) (increase(lithograph_key_pictures_total{$S}[$__rate_interval]))"},
          description="(none): sent without a key. GET /v1/usage has the sums by day."),
    Panel(title="Device by key", unit="none", stacked=True,
          queries={"{{key}}": _rate("lithograph_key_device_seconds_total", "$S", "key")},
          description="Devices that each key keeps busy. While keys wait, they get parts in proportion to their shares."),
    Panel(title="Limits and priorities", kind="bars", unit="none",
          queries={"refused: {{reason}}": "sum by (reason) (increase(lithograph_api_key_refusals_total{$S}[$__rate_interval]))",
                   "parked": "sum(increase(lithograph_parkings_total{$S}[$__rate_interval]))"},
          description="requests, pixel_steps: a key is at its limit. parked: pictures that made way for ones of high priority."),
]  # fmt: skip

TRAINING = [
    Panel(title="Steps made", kind="number", width=4, unit="percentunit",
          queries={"{{instance}} {{run}}": "lithograph_trainer_step{$T} / lithograph_trainer_target_steps"},
          description="Of all steps of the run."),
    Panel(title="Time left", kind="number", width=4, unit="s",
          queries={"{{instance}} {{run}}": "lithograph_trainer_eta_seconds{$T}"},
          description="Without checkpoints and validations."),
    Panel(title="Since the last step", kind="number", width=4, unit="s", alarms={"green": None, "red": 600},
          queries={"{{instance}} {{run}}": "time() - lithograph_trainer_last_step_timestamp_seconds{$T}"},
          description="Ten minutes while training is a stall."),
    Panel(title="What it does", kind="states", width=12, unit="none",
          queries={"{{phase}} {{instance}} {{run}}": "lithograph_trainer_phase{$T} == 1"},
          description="Preparing, caching, training, validating, publishing."),
    Panel(title="Loss", unit="none", least=None,
          queries={"{{instance}} {{run}}": "lithograph_trainer_loss{$T}",
                   "averaged {{instance}} {{run}}": "avg_over_time(lithograph_trainer_loss{$T}[$__rate_interval])"},
          description="Noisy, because each step has other noise levels. NaN ends the run."),
    Panel(title="Learning rate", unit="sci", queries={"{{instance}} {{run}}": "lithograph_trainer_learning_rate{$T}"},
          description="Of the last step."),
    Panel(title="Gradient norm", unit="none", logarithmic=True, least=None,
          queries={"{{instance}} {{run}}": "lithograph_trainer_gradient_norm{$T}"},
          description="Before clipping. If it keeps rising, lower the learning rate."),
    Panel(title="Step time", unit="s",
          queries={"mean": _mean("lithograph_trainer_step_seconds", "$T", "instance, run"),
                   "p95": _quantile(0.95, "lithograph_trainer_step_seconds", "$T")},
          description="One optimizer step."),
    Panel(title="Speed", unit="none", queries={"images/s {{instance}} {{run}}": "lithograph_trainer_images_per_second{$T}"},
          description="Pictures trained on per second, averaged over about 50 steps."),
    Panel(title="Cache", unit="none",
          queries={"{{kind}} {{outcome}}": "sum by (kind, outcome) (lithograph_trainer_cache_entries_total{$T})"},
          description="hit: computed by an earlier run."),
    Panel(title="Checkpoints", unit="none",
          queries={"{{instance}} {{run}}": "lithograph_trainer_checkpoints_total{$T}"},
          description="Step from which a preempted run continues."),
    Panel(title="Writing a checkpoint", unit="s",
          queries={"mean": _mean("lithograph_trainer_checkpoint_seconds", "$T", "instance, run")},
          description="Training waits for it; a slow volume shows here."),
    Panel(title="Validations", unit="none",
          queries={"{{outcome}}": "sum by (outcome) (lithograph_trainer_validations_total{$T})"},
          description="failed: published, but not the latest."),
]  # fmt: skip

ROWS = {
    "At a glance": GLANCE,
    "Requests": REQUESTS,
    "Engine": ENGINE,
    "Adapters": ADAPTERS,
    "Lasting jobs and batches": LASTING,
    "Keys": KEYS,
    "Training": TRAINING,
}
