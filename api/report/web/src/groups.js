// The tree above the quanta: its nodes, and the groups that a cut leaves. Nodes below the number of quanta are the
// quanta themselves; node (number of quanta) + i is merge i.

export function forest(data) {
  const leaves = data.numQuanta;
  const { left, right, cosine } = data.tree;
  const parent = new Int32Array(leaves + left.length).fill(-1);
  left.forEach((node, i) => (parent[node] = parent[right[i]] = leaves + i));
  const under = Array.from({ length: leaves }, (_, quantum) => [quantum]);
  const use = Array.from(data.quanta.use);
  const sides = [];
  left.forEach((node, i) => {
    const pair = use[node] >= use[right[i]] ? [node, right[i]] : [right[i], node];
    sides.push(pair);
    under.push([...under[pair[0]], ...under[pair[1]]]);
    use.push(use[node] + use[right[i]]);
  });
  return {
    leaves, parent, under, use,
    roots: Array.from(parent.keys()).filter((node) => parent[node] < 0).sort((a, b) => use[b] - use[a]),
    sides: (node) => (node < leaves ? [] : sides[node - leaves]),
    cosine: (node) => (node < leaves ? null : cosine[node - leaves]),
    persistence: (node) => (node < leaves ? data.quanta.persistence?.[node] : data.tree.persistence?.[node - leaves]),
    range: [Math.min(0, ...cosine), Math.max(0, ...cosine)],
    most: (node) => under[node].reduce((best, quantum) => (data.quanta.use[quantum] > data.quanta.use[best] ? quantum : best)),
  };
}

// The highest nodes whose merge is at least as tight as the cut.
export function groupsAt(tree, cut) {
  const found = [];
  const visit = (node) => (node < tree.leaves || tree.cosine(node) >= cut ? found.push(node) : tree.sides(node).forEach(visit));
  tree.roots.forEach(visit);
  return found;
}

// Tighter than the cut means folded, unless the reader toggled it; above the cut it is the other way round.
export const folded = (tree, node, { cut, toggled }) =>
  node >= tree.leaves && (cut !== null && tree.cosine(node) >= cut) !== toggled.includes(node);

export const toggle = (toggled, node) => (toggled.includes(node) ? toggled.filter((other) => other !== node) : [...toggled, node]);
