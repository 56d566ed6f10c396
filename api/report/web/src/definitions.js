// What each figure means and what it does not: shown on hover and focus.

export const DEFINITIONS = {
  label: ["The commonest predicted token (boxed), and the positions before it; … stands for positions that differ.", "A name made by counting, not by understanding."],
  use: ["Share of the selected tokens that this quantum predicts.", "Of the selected tokens (those that the model predicts well), not of all text."],
  size: ["Units: predicted tokens whose gradient rows were put into this quantum.", "Each unit is counted in one quantum; what else it uses stands beside it."],
  loss: ["Mean loss of the quantum's units at each checkpoint, in nats; all lines share one scale.", "Units were chosen because their loss ended low, so every line falls: compare when, not whether."],
  coherence: ["Mean cosine over all pairs of the quantum's gradient rows, after preconditioning.", "Depends on the projection and the preconditioning: compare within this report only."],
  meanLoss: ["Mean loss of the quantum's units at the last checkpoint, in nats.", "Units were chosen for a low loss."],
  documents: ["Documents that hold at least one of the quantum's units.", ""],
  dimension: ["Participation ratio of the quantum's gradient rows: over how many directions they spread, from pairs of different documents, freed from the projection's share.", "The interval is over units; the null is that of rows drawn from all units."],
  memorised: ["Of all that the quantum's units do for each other's gradients, the share that comes from a unit's own document: 1 where one document alone teaches it, near 0 where many do.", "The null is what its sizes give if units of one document are no more alike than others. A score, not a proof."],
  influence: ["Squared length of the median unit's gradient, divided by the second moment of all gradients, over that of the median unit of all. Unusual units have more.", "The null is where the median of as many units drawn from all lies in 95 % of draws. Nothing was retrained without them."],
  persistence: ["In how many of 20 halves of the documents, clustered anew, a branch with nearly the same units turns up (Jaccard index 0.6 and more).", "The null is what 95 % of branches of like size do not exceed where every column is shuffled. It says that the branch is real, not that this grain is the right one: parts and unions of a skill come back too."],
  monogenic: ["How far one quantum says it all, averaged over the units: the greatest squared weight over the sum of them; 1 for one quantum, ½ for two equal ones.", "The null is that of units made to use this quantum alone. Weights below the noise of the projection are left out."],
  interferes: ["Quanta whose rows have a negative mean cosine with this one's, beyond what units dealt out at random give: learning one unlearns the other, to first order.", "The null is the least that chance gives for quanta of these sizes (3 standard deviations)."],
  usedWith: ["Quanta that turn up in more of this one's documents than 99 % of chance. Chance keeps how many documents each quantum is in, and how many quanta each document has.", "Of many pairs some are beyond chance by chance: see the evidence."],
  named: ["A language model made this name from the quantum's examples.", "Nobody checked it."],
  emergence: ["Step at which half of the loss drop is done, fitted to the loss curve.", "No finer than the checkpoints lie apart."],
  address: ["Share of the gradient's squared norm in each layer and kind of parameter.", "Where the gradient is large, which is not always where the skill is computed."],
  nearest: ["Quanta whose centroids point in the most similar direction (cosine).", ""],
  exemplar: ["The unit nearest the centroid, in its context; the predicted token is boxed.", "One of many: the quantum's page shows the edge and counter-examples too."],
  weight: ["Non-negative weight of the quantum's centroid in the behaviour's gradient row; whiskers are 95 % intervals over resampled coordinates.", "Attribution by gradient, not by removal."],
  novelty: ["Share of training units that lie nearer to a unit of another document than this behaviour lies to any unit.", "Strange in gradient space; the words may be common."],
  score: ["Cosine of the behaviour's row with the unit's row, after preconditioning; for the search by words its BM25 score.", "Which units push in the same direction; not what would happen without them."],
};

export const defined = (key) => ({ definition: DEFINITIONS[key][0], caveat: DEFINITIONS[key][1] });
