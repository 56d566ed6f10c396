// What each figure means and what it does not: shown on hover and focus.

export const DEFINITIONS = {
  label: ["The commonest predicted token (boxed), and the positions before it; … stands for positions that differ.", "A name made by counting, not by understanding."],
  use: ["Share of the selected tokens that this quantum predicts.", "Of the selected tokens (those that the model predicts well), not of all text."],
  size: ["Units: predicted tokens whose gradient rows were put into this quantum.", "Each unit is in one quantum here, though a prediction may use several skills."],
  loss: ["Mean loss of the quantum's units at each checkpoint, in nats; all lines share one scale.", "Units were chosen because their loss ended low, so every line falls: compare when, not whether."],
  coherence: ["Mean cosine over all pairs of the quantum's gradient rows, after preconditioning.", "Depends on the projection and the preconditioning: compare within this report only."],
  meanLoss: ["Mean loss of the quantum's units at the last checkpoint, in nats.", "Units were chosen for a low loss."],
  documents: ["Documents that hold at least one of the quantum's units.", ""],
  dimension: ["Participation ratio of the quantum's gradient rows: how many directions they spread over.", "An estimate from the projected rows; small quanta bound it from above."],
  memorised: ["From 0 (the same prediction is made in new text) to 1 (only in the training text).", "A score, not a proof."],
  emergence: ["Step at which half of the loss drop is done, fitted to the loss curve.", "No finer than the checkpoints lie apart."],
  address: ["Share of the gradient's squared norm in each layer and kind of parameter.", "Where the gradient is large, which is not always where the skill is computed."],
  nearest: ["Quanta whose centroids point in the most similar direction (cosine).", ""],
  exemplar: ["The unit nearest the centroid, in its context; the predicted token is boxed.", "One of many: the quantum's page shows the edge and counter-examples too."],
  weight: ["Non-negative weight of the quantum's centroid in the behaviour's gradient row; whiskers are 95 % intervals over resampled coordinates.", "Attribution by gradient, not by removal."],
  novelty: ["Share of training units that lie nearer to a unit of another document than this behaviour lies to any unit.", "Strange in gradient space; the words may be common."],
  score: ["Cosine of the behaviour's row with the unit's row, after preconditioning; for the search by words its BM25 score.", "Which units push in the same direction; not what would happen without them."],
};

export const defined = (key) => ({ definition: DEFINITIONS[key][0], caveat: DEFINITIONS[key][1] });
