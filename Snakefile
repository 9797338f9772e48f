# The whole chain, agent to figures, written once: a laptop runs it with `make demo`, a cluster
# runs the same file through one of Snakemake's executors.
#
# Each stage is a plain command with declared inputs and outputs. What must survive a kill (the
# checkpoints of trainings, the sealed shards of recordings) is written to a working folder outside
# the declared outputs, because Snakemake deletes the declared outputs of a stage that broke off.
# The folder's name contains a hash of all settings and of the descriptions of all inputs that lead
# to it, so that changed settings or inputs start afresh and unchanged ones go on. A finished stage
# then moves or copies its result to its output.

import hashlib
import json
import os
import shlex
import sys

from experiment.command_line import load_preset
from experiment.errors import UserError
from experiment.files import read_json
from experiment.report import stage_report
from experiment.runs import export_folder
from experiment.summary import write_summary

# Whoever runs the chain in a task of a job array wants all of it: record.py would keep a part.
for variable in ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"):
    os.environ.pop(variable, None)

OUT = config.get("out", "demo")
CHAIN = load_preset("chains.yml", config.get("preset", "demo"))
ROOT = shlex.quote(str(workflow.basedir))
# Threads that spin while they wait cost a busy machine more than half of its speed.
PYTHON = (
    f"OMP_NUM_THREADS={workflow.cores} OMP_WAIT_POLICY=passive {shlex.quote(sys.executable)}"
)
# `train`, or the folder of an agent that is there already.
AGENT = config.get("agent") or CHAIN["agent"]
AGENT_STAGE = "train_agent" if AGENT == "train" else "take_agent"
AGENT_FOLDER = Path(AGENT) if Path(AGENT).exists() else Path(workflow.basedir) / AGENT
SIMULATOR_FOLDER = Path(workflow.basedir) / CHAIN["simulator"]
if AGENT != "train" and not (AGENT_FOLDER / "agent.json").is_file():
    raise UserError(
        f"AGENT={AGENT}: neither `train` nor the folder of an agent; `python -m agents import FILE "
        "--out FOLDER` makes one of a file"
    )
# A shipped simulator is trained on where its own agent plays, or taken as it is where the preset names
# no training for it; of any other agent it knows nothing.
IS_SHIPPED = False
if AGENT != "train" and CHAIN["simulator"] != "train":
    description = read_json(SIMULATOR_FOLDER / "simulator.json")
    IS_SHIPPED = description["agent_hash"] == read_json(AGENT_FOLDER / "agent.json")["hash"]
IS_TAKEN = IS_SHIPPED and CHAIN["finetuning_params_name"] is None
SIMULATOR_STAGE = "take_simulator" if IS_TAKEN else "train_simulator"
STAGES = (
    AGENT_STAGE,
    "record_rollouts",
    "record_heldout",
    SIMULATOR_STAGE,
    "simulator_fidelity",
    "fidelity_figures",
    "record_samples",
    "hidden_analysis",
    "saliency",
    "figures",
    "record_followed",
    "probe_analysis",
    "probe_figures",
    "behaviour_clusters",
    "behaviour_figures",
    "jacobians",
    "jacobian_figures",
    "cross_dynamics",
    "consistency",
    "statement_effects",
    "statement_figures",
    "saliency_trust",
    "saliency_trust_figures",
    *CHAIN["further_stages"],
)
# The analyses of vectors that samples carry: folder of the result, beginning of the script's name,
# section of hyperparams/vector_analysis.yml.
VECTOR_ANALYSES = {
    "env_h": "env_h_analysis",
    "bottleneck": "bottleneck_vec_analysis",
    "sml": "sml_analysis",
}
FIRST_HELDOUT_LEVEL = 10**9
SHARED_SETTINGS = ("env_name", "distribution_mode", "train_flags", "seed")
# Shell: hash of the JSON files that describe a stage's inputs.
STAMP = "sha256sum | cut -c1-8"


def settings(preset_file, *upstream, section=None, name=None):
    """What decides a stage's result: the chain, its preset's values, the stages before it."""
    name = name or CHAIN["param_name" if preset_file == "agents.yml" else "interpreting_params_name"]
    preset = load_preset(preset_file, name)
    values = preset if section is None else preset.get(section)
    shared = {setting: CHAIN[setting] for setting in SHARED_SETTINGS}
    return {"chain": shared, "preset": values, "upstream": upstream}


def working_folder(stage):
    """Folder for what must survive a kill of `stage`."""
    encoded = json.dumps(SETTINGS[stage], sort_keys=True).encode()
    return f"{OUT}/runs/{stage}-{hashlib.sha256(encoded).hexdigest()[:12]}"


SETTINGS = {}
if AGENT == "train":
    SETTINGS[AGENT_STAGE] = settings("agents.yml")
else:
    SETTINGS[AGENT_STAGE] = {"hash": read_json(AGENT_FOLDER / "agent.json")["hash"]}
SETTINGS["record_rollouts"] = settings("recording.yml", SETTINGS[AGENT_STAGE])
SETTINGS["record_heldout"] = {
    "recording": SETTINGS["record_rollouts"],
    "num_heldout_episodes": CHAIN["num_heldout_episodes"],
}
if IS_TAKEN:
    SETTINGS[SIMULATOR_STAGE] = {"simulator": description}
else:
    SIMULATOR_PRESET = CHAIN["finetuning_params_name" if IS_SHIPPED else "interpreting_params_name"]
    SIMULATOR_FLAGS = f"--model_file {shlex.quote(str(SIMULATOR_FOLDER))}" if IS_SHIPPED else ""
    SETTINGS[SIMULATOR_STAGE] = settings(
        "simulator.yml",
        SETTINGS["record_rollouts"],
        {"simulator": description if IS_SHIPPED else "train"},
        section="training",
        name=SIMULATOR_PRESET,
    )
SETTINGS["record_samples"] = settings("sampling.yml", SETTINGS[SIMULATOR_STAGE])
SETTINGS["hidden_analysis"] = settings(
    "hidden_analysis.yml", SETTINGS["record_samples"], section="precompute"
)
SETTINGS["simulator_fidelity"] = settings(
    "simulator.yml", SETTINGS["hidden_analysis"], section="measurement"
)
SETTINGS["fidelity_figures"] = {"measured": SETTINGS["simulator_fidelity"]}
SETTINGS["figures"] = settings(
    "hidden_analysis.yml", SETTINGS["hidden_analysis"], section="plotting"
)
SETTINGS["record_followed"] = {
    "samples": SETTINGS["record_samples"],
    "heldout": SETTINGS["record_heldout"],
    "followed": CHAIN["followed_flags"],
}
SETTINGS["probe_analysis"] = settings(
    "probe_analysis.yml",
    SETTINGS["record_followed"],
    SETTINGS["hidden_analysis"],
    section="precompute",
)
SETTINGS["probe_figures"] = settings(
    "probe_analysis.yml", SETTINGS["probe_analysis"], section="plotting"
)
SETTINGS["saliency"] = settings("saliency.yml", SETTINGS["hidden_analysis"])


def dynamics_settings(section, *upstream):
    return settings("dynamics.yml", *upstream, section=section)


SETTINGS["behaviour_clusters"] = dynamics_settings("behaviour", SETTINGS["record_samples"])
SETTINGS["behaviour_figures"] = dynamics_settings(
    "behaviour_plotting", SETTINGS["behaviour_clusters"]
)
SETTINGS["jacobians"] = dynamics_settings("jacobian", SETTINGS["hidden_analysis"])
SETTINGS["jacobian_figures"] = dynamics_settings("jacobian_plotting", SETTINGS["jacobians"])
SETTINGS["cross_dynamics"] = dynamics_settings(
    "cross", SETTINGS["behaviour_clusters"], SETTINGS["jacobians"]
)
SETTINGS["consistency"] = dynamics_settings("consistency", SETTINGS["cross_dynamics"])
SETTINGS["statement_effects"] = settings("statement_effects.yml", SETTINGS["consistency"])
SETTINGS["statement_figures"] = {"measured": SETTINGS["statement_effects"]}
SETTINGS["saliency_trust"] = {
    "samples": SETTINGS["record_samples"],
    "flags": CHAIN["saliency_trust_flags"],
}
SETTINGS["saliency_trust_figures"] = {"measured": SETTINGS["saliency_trust"]}
SETTINGS["overlap"] = settings(
    "hidden_analysis.yml", SETTINGS["hidden_analysis"], section="overlap"
)
SETTINGS["readout_weights"] = settings("readout_weights.yml", SETTINGS["hidden_analysis"])
SETTINGS["record_random"] = {
    "samples": SETTINGS["record_samples"],
    "flags": CHAIN["random_flags"],
}
for kind in VECTOR_ANALYSES:
    SETTINGS[f"{kind}_analysis"] = settings(
        "vector_analysis.yml",
        SETTINGS["record_samples"],
        *([SETTINGS["record_random"]] if kind == "bottleneck" else []),
        section=kind,
    )
    SETTINGS[f"{kind}_figures"] = {"measured": SETTINGS[f"{kind}_analysis"]}
SETTINGS["target_functions"] = settings("target_functions.yml", SETTINGS["hidden_analysis"])
SETTINGS["target_figures"] = {"measured": SETTINGS["target_functions"]}
SETTINGS["sample_trust_figures"] = {"measured": SETTINGS["record_samples"]}
for stage in ("saliency_paths", "integrated_gradients"):
    SETTINGS[stage] = {"saliency": SETTINGS["saliency"], "flags": CHAIN[f"{stage}_flags"]}
SETTINGS["attribution_figures"] = {
    "measured": [SETTINGS["saliency_paths"], SETTINGS["integrated_gradients"]]
}
SETTINGS["intervention_effects"] = settings(
    "intervention_effects.yml",
    SETTINGS["hidden_analysis"],
    {"flags": CHAIN["intervention_flags"]},
)
SETTINGS["intervention_figures"] = {"measured": SETTINGS["intervention_effects"]}
UNKNOWN_STAGES = [stage for stage in CHAIN["further_stages"] if stage not in SETTINGS]
if UNKNOWN_STAGES:
    raise UserError(
        f"hyperparams/chains.yml: further_stages names {' '.join(UNKNOWN_STAGES)}, which the "
        "Snakefile has no rule for"
    )


def describe_agent():
    """What a shipped agent's card says of its play; nothing for another agent."""
    card = AGENT_FOLDER / "card.json"
    if not card.exists():
        return {}
    own, random, *_ = read_json(card)["records"]
    return {
        "mean_return_held_out": own["mean_return"]["mean"],
        "random_policy_return_held_out": random["mean_return"]["mean"],
        "held_out_levels": read_json(card)["num_levels"],
    }


def write_chain_summary():
    reports, outputs = {}, {}
    for stage in STAGES:
        made = [str(path) for path in getattr(rules, stage).output]
        outputs[stage], reports[stage] = made[:-1], Path(made[-1])
    write_summary(reports, outputs, Path(OUT) / "summary.json")


onerror:
    write_chain_summary()


if AGENT == "train":

    rule train_agent:
        output:
            agent=directory(f"{OUT}/agent"),
            report=f"{OUT}/reports/train_agent.json",
        params:
            settings=SETTINGS[AGENT_STAGE],
            work=working_folder("train_agent"),
        threads: workflow.cores
        shell:
            "{PYTHON} {ROOT}/train.py --param_name {CHAIN[param_name]}"
            " --env_name {CHAIN[env_name]} --distribution_mode {CHAIN[distribution_mode]}"
            " --seed {CHAIN[seed]} --device auto {CHAIN[train_flags]}"
            " --run_dir {params.work} --export_dir {output.agent} --report {output.report}"

else:

    rule take_agent:
        input:
            AGENT_FOLDER / "agent.json",
            AGENT_FOLDER / "weights.safetensors",
        output:
            agent=directory(f"{OUT}/agent"),
            report=f"{OUT}/reports/take_agent.json",
        params:
            settings=SETTINGS[AGENT_STAGE],
        run:
            with stage_report("take_agent", Path(output.report)) as report:
                export_folder(AGENT_FOLDER, Path(output.agent))
                report.outputs.append(output.agent)
                report.metrics.update(describe_agent())


AGENT_RULE = getattr(rules, AGENT_STAGE)


rule record_rollouts:
    input:
        agent=AGENT_RULE.output.agent,
    output:
        data=directory(f"{OUT}/rollouts"),
        report=f"{OUT}/reports/record_rollouts.json",
    params:
        settings=SETTINGS["record_rollouts"],
        work=working_folder("record_rollouts"),
    threads: workflow.cores
    shell:
        "work={params.work}-$(cat {input.agent}/*.json | {STAMP});"
        " {PYTHON} {ROOT}/record.py --model_file {input.agent} --seed {CHAIN[seed]} --device auto"
        " --interpreting_params_name {CHAIN[interpreting_params_name]}"
        " --data_dir $work --report {output.report}"
        " && mv $work {output.data}"


rule record_heldout:
    input:
        agent=AGENT_RULE.output.agent,
    output:
        data=directory(f"{OUT}/heldout_rollouts"),
        report=f"{OUT}/reports/record_heldout.json",
    params:
        settings=SETTINGS["record_heldout"],
        work=working_folder("record_heldout"),
        first_level=FIRST_HELDOUT_LEVEL,
    threads: workflow.cores
    shell:
        "work={params.work}-$(cat {input.agent}/*.json | {STAMP});"
        " {PYTHON} {ROOT}/record.py --model_file {input.agent} --seed {CHAIN[seed]} --device auto"
        " --interpreting_params_name {CHAIN[interpreting_params_name]}"
        " --start_level {params.first_level} --max_episodes {CHAIN[num_heldout_episodes]}"
        " --data_dir $work --report {output.report}"
        " && mv $work {output.data}"


if IS_TAKEN:

    rule take_simulator:
        input:
            SIMULATOR_FOLDER / "simulator.json",
            SIMULATOR_FOLDER / "simulator.safetensors",
        output:
            simulator=directory(f"{OUT}/simulator"),
            report=f"{OUT}/reports/take_simulator.json",
        params:
            settings=SETTINGS[SIMULATOR_STAGE],
        run:
            with stage_report("take_simulator", Path(output.report)) as report:
                export_folder(SIMULATOR_FOLDER, Path(output.simulator))
                report.outputs.append(output.simulator)

else:

    rule train_simulator:
        input:
            agent=AGENT_RULE.output.agent,
            data=rules.record_rollouts.output.data,
            heldout=rules.record_heldout.output.data,
        output:
            simulator=directory(f"{OUT}/simulator"),
            report=f"{OUT}/reports/train_simulator.json",
        params:
            settings=SETTINGS["train_simulator"],
            work=working_folder("train_simulator"),
        threads: workflow.cores
        shell:
            "work={params.work}-$(cat {input.agent}/*.json {input.data}/dataset.json"
            " {input.heldout}/dataset.json | {STAMP});"
            " {PYTHON} {ROOT}/train_gen_model.py --agent_file {input.agent} --data_dir {input.data}"
            " --heldout_data_dir {input.heldout} --seed {CHAIN[seed]} --device auto"
            " --interpreting_params_name {SIMULATOR_PRESET} {SIMULATOR_FLAGS}"
            " --run_dir $work --export_dir {output.simulator} --report {output.report}"


SIMULATOR_RULE = getattr(rules, SIMULATOR_STAGE)


rule simulator_fidelity:
    input:
        agent=AGENT_RULE.output.agent,
        simulator=SIMULATOR_RULE.output.simulator,
        data=rules.record_rollouts.output.data,
        heldout=rules.record_heldout.output.data,
        hidden_analysis=f"{OUT}/hidden_analysis",
    output:
        results=directory(f"{OUT}/fidelity"),
        report=f"{OUT}/reports/simulator_fidelity.json",
    params:
        settings=SETTINGS["simulator_fidelity"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/analysis/simulator_fidelity_precompute.py --agent_file {input.agent}"
        " --model_file {input.simulator} --data_dir {input.heldout} --train_data_dir {input.data}"
        " --projection {input.hidden_analysis}/projection"
        " --interpreting_params_name {CHAIN[interpreting_params_name]}"
        " --output_dir {output.results} --report {output.report}"


rule fidelity_figures:
    input:
        results=rules.simulator_fidelity.output.results,
        samples=f"{OUT}/samples",
    output:
        figures=directory(f"{OUT}/fidelity_figures"),
        report=f"{OUT}/reports/fidelity_figures.json",
    params:
        settings=SETTINGS["fidelity_figures"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/analysis/simulator_fidelity_plotting.py --input_dir {input.results}"
        " --sample_trust {input.samples}/sample_trust.nc"
        " --interpreting_params_name {CHAIN[interpreting_params_name]}"
        " --output_dir {output.figures} --report {output.report}"


rule record_samples:
    input:
        agent=AGENT_RULE.output.agent,
        simulator=SIMULATOR_RULE.output.simulator,
        data=rules.record_rollouts.output.data,
    output:
        data=directory(f"{OUT}/samples"),
        report=f"{OUT}/reports/record_samples.json",
    params:
        settings=SETTINGS["record_samples"],
        work=working_folder("record_samples"),
    threads: workflow.cores
    shell:
        "work={params.work}-$(cat {input.simulator}/*.json {input.data}/dataset.json | {STAMP});"
        " {PYTHON} {ROOT}/record_gen_samples.py --agent_file {input.agent} --model_file {input.simulator}"
        " --data_dir {input.data} --seed {CHAIN[seed]} --device auto"
        " --interpreting_params_name {CHAIN[interpreting_params_name]}"
        " --data_save_dir $work --report {output.report}"
        " && {PYTHON} {ROOT}/analysis/sample_trust_precompute.py --agent_file {input.agent}"
        " --data_dir {input.data} --generated_data_dir $work --device auto"
        " && mv $work {output.data}"


rule hidden_analysis:
    input:
        data=rules.record_rollouts.output.data,
        samples=rules.record_samples.output.data,
    output:
        results=directory(f"{OUT}/hidden_analysis"),
        report=f"{OUT}/reports/hidden_analysis.json",
    params:
        settings=SETTINGS["hidden_analysis"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/analysis/hidden_analysis_precompute.py --data_dir {input.data}"
        " --generated_data_dir {input.samples} --seed {CHAIN[seed]}"
        " --interpreting_params_name {CHAIN[interpreting_params_name]}"
        " --output_dir {output.results} --report {output.report}"


rule saliency:
    input:
        agent=AGENT_RULE.output.agent,
        simulator=SIMULATOR_RULE.output.simulator,
        samples=rules.record_samples.output.data,
        hidden_analysis=rules.hidden_analysis.output.results,
    output:
        results=directory(f"{OUT}/saliency"),
        report=f"{OUT}/reports/saliency.json",
    params:
        settings=SETTINGS["saliency"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/saliency_experiments.py --agent_file {input.agent}"
        " --model_file {input.simulator} --generated_data_dir {input.samples}"
        " --projection {input.hidden_analysis}/projection --seed {CHAIN[seed]} --device auto"
        " --interpreting_params_name {CHAIN[interpreting_params_name]}"
        " --output_dir {output.results} --report {output.report}"


rule figures:
    input:
        hidden_analysis=rules.hidden_analysis.output.results,
    output:
        figures=directory(f"{OUT}/figures"),
        report=f"{OUT}/reports/figures.json",
    params:
        settings=SETTINGS["figures"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/analysis/hidden_analysis_plotting.py --input_dir {input.hidden_analysis}"
        " --interpreting_params_name {CHAIN[interpreting_params_name]}"
        " --output_dir {output.figures} --report {output.report}"


# Held-out levels, so that neither agent nor simulator has seen what probes are asked about.
rule record_followed:
    input:
        agent=AGENT_RULE.output.agent,
        simulator=SIMULATOR_RULE.output.simulator,
        data=rules.record_heldout.output.data,
    output:
        data=directory(f"{OUT}/followed"),
        report=f"{OUT}/reports/record_followed.json",
    params:
        settings=SETTINGS["record_followed"],
        work=working_folder("record_followed"),
    threads: workflow.cores
    shell:
        "work={params.work}-$(cat {input.simulator}/*.json {input.data}/dataset.json | {STAMP});"
        " {PYTHON} {ROOT}/record_gen_samples.py --agent_file {input.agent} --model_file {input.simulator}"
        " --data_dir {input.data} --seed {CHAIN[seed]} --device auto"
        " --interpreting_params_name {CHAIN[interpreting_params_name]}"
        " --recorded_actions --num_videos 0 {CHAIN[followed_flags]}"
        " --data_save_dir $work --report {output.report}"
        " && mv $work {output.data}"


rule probe_analysis:
    input:
        agent=AGENT_RULE.output.agent,
        data=rules.record_heldout.output.data,
        followed=rules.record_followed.output.data,
        hidden_analysis=rules.hidden_analysis.output.results,
    output:
        results=directory(f"{OUT}/probe_analysis"),
        report=f"{OUT}/reports/probe_analysis.json",
    params:
        settings=SETTINGS["probe_analysis"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/analysis/probe_analysis_precompute.py --agent_file {input.agent}"
        " --data_dir {input.data} --generated_data_dir {input.followed}"
        " --projection {input.hidden_analysis}/projection --seed {CHAIN[seed]} --device auto"
        " --interpreting_params_name {CHAIN[interpreting_params_name]}"
        " --output_dir {output.results} --report {output.report}"


rule probe_figures:
    input:
        results=rules.probe_analysis.output.results,
    output:
        figures=directory(f"{OUT}/probe_figures"),
        report=f"{OUT}/reports/probe_figures.json",
    params:
        settings=SETTINGS["probe_figures"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/analysis/probe_analysis_plotting.py --input_dir {input.results}"
        " --interpreting_params_name {CHAIN[interpreting_params_name]}"
        " --output_dir {output.figures} --report {output.report}"


rule behaviour_clusters:
    input:
        samples=rules.record_samples.output.data,
    output:
        results=directory(f"{OUT}/behaviour_clusters"),
        report=f"{OUT}/reports/behaviour_clusters.json",
    params:
        settings=SETTINGS["behaviour_clusters"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/analysis/combined_agent_env_hx_analysis_precompute.py"
        " --generated_data_dir {input.samples} --seed {CHAIN[seed]}"
        " --interpreting_params_name {CHAIN[interpreting_params_name]}"
        " --output_dir {output.results} --report {output.report}"


rule behaviour_figures:
    input:
        results=rules.behaviour_clusters.output.results,
    output:
        figures=directory(f"{OUT}/behaviour_figures"),
        report=f"{OUT}/reports/behaviour_figures.json",
    params:
        settings=SETTINGS["behaviour_figures"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/analysis/combined_agent_env_hx_analysis_plotting.py"
        " --input_dir {input.results}"
        " --interpreting_params_name {CHAIN[interpreting_params_name]}"
        " --output_dir {output.figures} --report {output.report}"


rule jacobians:
    input:
        agent=AGENT_RULE.output.agent,
        simulator=SIMULATOR_RULE.output.simulator,
        samples=rules.record_samples.output.data,
        hidden_analysis=rules.hidden_analysis.output.results,
    output:
        results=directory(f"{OUT}/jacobians"),
        report=f"{OUT}/reports/jacobians.json",
    params:
        settings=SETTINGS["jacobians"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/analysis/jacobian_analysis_precompute.py --agent_file {input.agent}"
        " --model_file {input.simulator} --generated_data_dir {input.samples}"
        " --projection {input.hidden_analysis}/projection --seed {CHAIN[seed]} --device auto"
        " --interpreting_params_name {CHAIN[interpreting_params_name]}"
        " --output_dir {output.results} --report {output.report}"


rule jacobian_figures:
    input:
        results=rules.jacobians.output.results,
    output:
        figures=directory(f"{OUT}/jacobian_figures"),
        report=f"{OUT}/reports/jacobian_figures.json",
    params:
        settings=SETTINGS["jacobian_figures"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/analysis/jacobian_analysis_plotting.py --input_dir {input.results}"
        " --interpreting_params_name {CHAIN[interpreting_params_name]}"
        " --output_dir {output.figures} --report {output.report}"


rule cross_dynamics:
    input:
        samples=rules.record_samples.output.data,
        hidden_analysis=rules.hidden_analysis.output.results,
        behaviour=rules.behaviour_clusters.output.results,
        jacobians=rules.jacobians.output.results,
    output:
        results=directory(f"{OUT}/cross_dynamics"),
        report=f"{OUT}/reports/cross_dynamics.json",
    params:
        settings=SETTINGS["cross_dynamics"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/xcorr_and_xcaus_plots.py --generated_data_dir {input.samples}"
        " --projection {input.hidden_analysis}/projection --behaviour {input.behaviour}"
        " --jacobians {input.jacobians}"
        " --interpreting_params_name {CHAIN[interpreting_params_name]}"
        " --output_dir {output.results} --report {output.report}"


rule consistency:
    input:
        cross=rules.cross_dynamics.output.results,
        behaviour=rules.behaviour_clusters.output.results,
        jacobians=rules.jacobians.output.results,
    output:
        results=directory(f"{OUT}/consistency"),
        report=f"{OUT}/reports/consistency.json",
    params:
        settings=SETTINGS["consistency"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/analysis/dynamics_grads_consistency_plots.py --cross {input.cross}"
        " --behaviour {input.behaviour} --jacobians {input.jacobians}"
        " --interpreting_params_name {CHAIN[interpreting_params_name]}"
        " --output_dir {output.results} --report {output.report}"


rule statement_effects:
    input:
        agent=AGENT_RULE.output.agent,
        simulator=SIMULATOR_RULE.output.simulator,
        data=rules.record_rollouts.output.data,
        hidden_analysis=rules.hidden_analysis.output.results,
        cross=rules.cross_dynamics.output.results,
        consistency=rules.consistency.output.results,
    output:
        results=directory(f"{OUT}/statement_effects"),
        report=f"{OUT}/reports/statement_effects.json",
    params:
        settings=SETTINGS["statement_effects"],
        work=working_folder("statement_effects"),
    threads: workflow.cores
    shell:
        "work={params.work}-$(cat {input.simulator}/*.json {input.data}/dataset.json"
        " {input.hidden_analysis}/projection/*.json {input.consistency}/*.csv | {STAMP});"
        " {PYTHON} {ROOT}/analysis/statement_effects_precompute.py --agent_file {input.agent}"
        " --model_file {input.simulator} --data_dir {input.data}"
        " --projection {input.hidden_analysis}/projection --cross {input.cross}"
        " --consistency {input.consistency} --seed {CHAIN[seed]} --device auto"
        " --interpreting_params_name {CHAIN[interpreting_params_name]}"
        " --output_dir $work --report {output.report}"
        " && mv $work {output.results}"


rule statement_figures:
    input:
        results=rules.statement_effects.output.results,
    output:
        figures=directory(f"{OUT}/statement_figures"),
        report=f"{OUT}/reports/statement_figures.json",
    params:
        settings=SETTINGS["statement_figures"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/analysis/statement_effects_plotting.py --input_dir {input.results}"
        " --output_dir {output.figures} --report {output.report}"


rule saliency_trust:
    input:
        agent=AGENT_RULE.output.agent,
        simulator=SIMULATOR_RULE.output.simulator,
        samples=rules.record_samples.output.data,
    output:
        results=directory(f"{OUT}/saliency_trust"),
        report=f"{OUT}/reports/saliency_trust.json",
    params:
        settings=SETTINGS["saliency_trust"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/analysis/saliency_trust_precompute.py --agent_file {input.agent}"
        " --model_file {input.simulator} --generated_data_dir {input.samples}"
        " --seed {CHAIN[seed]} --device auto {CHAIN[saliency_trust_flags]}"
        " --output_dir {output.results} --report {output.report}"


rule saliency_trust_figures:
    input:
        results=rules.saliency_trust.output.results,
    output:
        figures=directory(f"{OUT}/saliency_trust_figures"),
        report=f"{OUT}/reports/saliency_trust_figures.json",
    params:
        settings=SETTINGS["saliency_trust_figures"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/analysis/saliency_trust_plotting.py"
        " --saliency_trust {input.results}/saliency_trust.nc"
        " --output_dir {output.figures} --report {output.report}"


rule overlap:
    input:
        hidden_analysis=rules.hidden_analysis.output.results,
    output:
        results=directory(f"{OUT}/overlap"),
        report=f"{OUT}/reports/overlap.json",
    params:
        settings=SETTINGS["overlap"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/analysis/show_hx_overlap.py --input_dir {input.hidden_analysis}"
        " --interpreting_params_name {CHAIN[interpreting_params_name]} --seed {CHAIN[seed]}"
        " --output_dir {output.results} --report {output.report}"


rule readout_weights:
    input:
        agent=AGENT_RULE.output.agent,
        data=rules.record_rollouts.output.data,
        hidden_analysis=rules.hidden_analysis.output.results,
    output:
        results=directory(f"{OUT}/readout_weights"),
        report=f"{OUT}/reports/readout_weights.json",
    params:
        settings=SETTINGS["readout_weights"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/plot_value_and_action_weights.py --agent_file {input.agent}"
        " --data_dir {input.data} --projection {input.hidden_analysis}/projection --device auto"
        " --interpreting_params_name {CHAIN[interpreting_params_name]}"
        " --output_dir {output.results} --report {output.report}"


# Latents that no window encodes to: the control of the bottleneck vectors.
rule record_random:
    input:
        agent=AGENT_RULE.output.agent,
        simulator=SIMULATOR_RULE.output.simulator,
        data=rules.record_rollouts.output.data,
    output:
        data=directory(f"{OUT}/random_samples"),
        report=f"{OUT}/reports/record_random.json",
    params:
        settings=SETTINGS["record_random"],
        work=working_folder("record_random"),
    threads: workflow.cores
    shell:
        "work={params.work}-$(cat {input.simulator}/*.json {input.data}/dataset.json | {STAMP});"
        " {PYTHON} {ROOT}/record_gen_samples.py --agent_file {input.agent} --model_file {input.simulator}"
        " --data_dir {input.data} --seed {CHAIN[seed]} --device auto"
        " --interpreting_params_name {CHAIN[interpreting_params_name]}"
        " --initialisation random --num_videos 0 {CHAIN[random_flags]}"
        " --data_save_dir $work --report {output.report}"
        " && mv $work {output.data}"


for kind, script in VECTOR_ANALYSES.items():
    IS_COMPARED = kind == "bottleneck"

    rule:
        name:
            f"{kind}_analysis"
        input:
            samples=rules.record_samples.output.data,
            random=[rules.record_random.output.data] if IS_COMPARED else [],
        output:
            results=directory(f"{OUT}/{kind}_analysis"),
            report=f"{OUT}/reports/{kind}_analysis.json",
        params:
            settings=SETTINGS[f"{kind}_analysis"],
            script=script,
            random="--random_data_dir" if IS_COMPARED else "",
        threads: workflow.cores
        shell:
            "{PYTHON} {ROOT}/analysis/{params.script}_precompute.py"
            " --generated_data_dir {input.samples} {params.random} {input.random}"
            " --interpreting_params_name {CHAIN[interpreting_params_name]} --seed {CHAIN[seed]}"
            " --output_dir {output.results} --report {output.report}"

    rule:
        name:
            f"{kind}_figures"
        input:
            results=f"{OUT}/{kind}_analysis",
        output:
            figures=directory(f"{OUT}/{kind}_figures"),
            report=f"{OUT}/reports/{kind}_figures.json",
        params:
            settings=SETTINGS[f"{kind}_figures"],
            script=script,
        threads: workflow.cores
        shell:
            "{PYTHON} {ROOT}/analysis/{params.script}_plotting.py --input_dir {input.results}"
            " --output_dir {output.figures} --report {output.report}"


rule target_functions:
    input:
        agent=AGENT_RULE.output.agent,
        simulator=SIMULATOR_RULE.output.simulator,
        data=rules.record_rollouts.output.data,
        hidden_analysis=rules.hidden_analysis.output.results,
    output:
        results=directory(f"{OUT}/target_functions"),
        report=f"{OUT}/reports/target_functions.json",
    params:
        settings=SETTINGS["target_functions"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/analysis/target_functions_precompute.py --agent_file {input.agent}"
        " --model_file {input.simulator} --data_dir {input.data}"
        " --projection {input.hidden_analysis}/projection --seed {CHAIN[seed]} --device auto"
        " --interpreting_params_name {CHAIN[interpreting_params_name]}"
        " --output_dir {output.results} --report {output.report}"


rule target_figures:
    input:
        results=rules.target_functions.output.results,
    output:
        figures=directory(f"{OUT}/target_figures"),
        report=f"{OUT}/reports/target_figures.json",
    params:
        settings=SETTINGS["target_figures"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/analysis/target_functions_plotting.py --results_dir {input.results}"
        " --output_dir {output.figures} --report {output.report}"


rule sample_trust_figures:
    input:
        samples=rules.record_samples.output.data,
    output:
        figures=directory(f"{OUT}/sample_trust_figures"),
        report=f"{OUT}/reports/sample_trust_figures.json",
    params:
        settings=SETTINGS["sample_trust_figures"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/analysis/sample_trust_plotting.py --generated_data_dir {input.samples}"
        " --output_dir {output.figures} --report {output.report}"


for stage, asked in {
    "saliency_paths": "--split_paths --no-both_env_grads --drawn_attribution gradient_times_input",
    "integrated_gradients": "--integrate frames latent --no-both_env_grads --no-env_grads",
}.items():

    rule:
        name:
            stage
        input:
            agent=AGENT_RULE.output.agent,
            simulator=SIMULATOR_RULE.output.simulator,
            samples=rules.record_samples.output.data,
            hidden_analysis=rules.hidden_analysis.output.results,
        output:
            results=directory(f"{OUT}/{stage}"),
            report=f"{OUT}/reports/{stage}.json",
        params:
            settings=SETTINGS[stage],
            flags=f"{asked} {CHAIN[f'{stage}_flags']}",
        threads: workflow.cores
        shell:
            "{PYTHON} {ROOT}/saliency_experiments.py --agent_file {input.agent}"
            " --model_file {input.simulator} --generated_data_dir {input.samples}"
            " --projection {input.hidden_analysis}/projection --seed {CHAIN[seed]} --device auto"
            " --interpreting_params_name {CHAIN[interpreting_params_name]} {params.flags}"
            " --output_dir {output.results} --report {output.report}"


rule attribution_figures:
    input:
        paths=f"{OUT}/saliency_paths",
        integrated=f"{OUT}/integrated_gradients",
    output:
        figures=directory(f"{OUT}/attribution_figures"),
        report=f"{OUT}/reports/attribution_figures.json",
    params:
        settings=SETTINGS["attribution_figures"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/analysis/saliency_plotting.py --paths {input.paths}"
        " --integrated {input.integrated}"
        " --output_dir {output.figures} --report {output.report}"


rule intervention_effects:
    input:
        agent=AGENT_RULE.output.agent,
        simulator=SIMULATOR_RULE.output.simulator,
        data=rules.record_rollouts.output.data,
        hidden_analysis=rules.hidden_analysis.output.results,
    output:
        results=directory(f"{OUT}/intervention_effects"),
        report=f"{OUT}/reports/intervention_effects.json",
    params:
        settings=SETTINGS["intervention_effects"],
        work=working_folder("intervention_effects"),
    threads: workflow.cores
    shell:
        "work={params.work}-$(cat {input.simulator}/*.json {input.data}/dataset.json"
        " {input.hidden_analysis}/projection/*.json | {STAMP});"
        " {PYTHON} {ROOT}/analysis/intervention_effects_precompute.py --agent_file {input.agent}"
        " --model_file {input.simulator} --data_dir {input.data}"
        " --projection {input.hidden_analysis}/projection --seed {CHAIN[seed]} --device auto"
        " --interpreting_params_name {CHAIN[interpreting_params_name]} {CHAIN[intervention_flags]}"
        " --output_dir $work --report {output.report}"
        " && mv $work {output.results}"


rule intervention_figures:
    input:
        results=rules.intervention_effects.output.results,
    output:
        figures=directory(f"{OUT}/intervention_figures"),
        report=f"{OUT}/reports/intervention_figures.json",
    params:
        settings=SETTINGS["intervention_figures"],
    threads: workflow.cores
    shell:
        "{PYTHON} {ROOT}/analysis/intervention_effects_plotting.py --results_dir {input.results}"
        " --output_dir {output.figures} --report {output.report}"


rule summary:
    input:
        expand(f"{OUT}/reports/{{stage}}.json", stage=STAGES),
    output:
        f"{OUT}/summary.json",
    run:
        write_chain_summary()


# Every output is a target of its own: what is only needed on the way to the summary would not be
# made again after it was lost.
rule all:
    default_target: True
    input:
        rules.summary.output,
        [getattr(rules, stage).output for stage in STAGES],
