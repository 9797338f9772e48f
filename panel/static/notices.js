// What the page says in place of something that is not there.

export const COMMANDS = {
  real: "python record.py",
  simulated: "python record_gen_samples.py",
  analysis: "python analysis/hidden_analysis_precompute.py",
  saliency: "python saliency_experiments.py",
  behaviours: "python analysis/combined_agent_env_hx_analysis_precompute.py",
  jacobians: "python analysis/jacobian_analysis_precompute.py",
  cross: "python xcorr_and_xcaus_plots.py",
  consistency: "python analysis/dynamics_grads_consistency_plots.py",
  effects: "python analysis/intervention_effects_precompute.py",
  probes: "python analysis/probe_analysis_precompute.py",
  trust: "python analysis/sample_trust_precompute.py",
  fidelity: "python analysis/simulator_fidelity_precompute.py",
  trainAgent: "python train.py",
  trainSimulator: "python train_gen_model.py",
};

export function code(text) {
  return Object.assign(document.createElement("code"), { textContent: text });
}

/** Fills a box with lines; a line `[text, command]` ends in a command. */
export function showEmpty(box, lines) {
  const notice = document.createElement("div");
  notice.className = "empty";
  for (const line of lines) {
    const paragraph = document.createElement("p");
    if (Array.isArray(line)) paragraph.append(`${line[0]} `, code(line[1]));
    else paragraph.textContent = line;
    notice.append(paragraph);
  }
  box.replaceChildren(notice);
}
