//! Puts nodes into an order in which each comes after those whose tensors it uses.
//!
//! ONNX asks for that order, but some tools append what they add at the end.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};

use super::{
    super::{
        ModelError,
        onnx::{GraphProto, NodeProto},
    },
    walk,
};

/// The most nodes of a cycle that a message names.
const MOST_NAMED: usize = 4;

/// Sorts the nodes of the graph and of its subgraphs. Nodes keep their order as far as possible.
///
/// # Errors
/// Nodes that use each other's outputs in a cycle.
pub(super) fn sort(graph: &mut GraphProto) -> Result<(), ModelError> {
    let subgraphs = graph.node.iter_mut().flat_map(|node| &mut node.attribute);
    for attribute in subgraphs {
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            sort(graph)?;
        }
    }

    let order = order(&graph.node)?;
    if order.is_sorted() {
        return Ok(());
    }
    let mut nodes: Vec<Option<NodeProto>> = graph.node.drain(..).map(Some).collect();
    graph.node = order
        .into_iter()
        .filter_map(|index| nodes[index].take())
        .collect();
    Ok(())
}

/// The indices of the nodes in an order in which they can run: of those that can, the first.
fn order(nodes: &[NodeProto]) -> Result<Vec<usize>, ModelError> {
    let mut producers: HashMap<&str, usize> = HashMap::new();
    for (index, node) in nodes.iter().enumerate() {
        let outputs = node.output.iter().filter(|name| !name.is_empty());
        producers.extend(outputs.map(|name| (name.as_str(), index)));
    }
    let needed: Vec<Vec<usize>> = nodes
        .iter()
        .map(|node| {
            let producers = walk::taken(node)
                .into_iter()
                .filter_map(|name| producers.get(name).copied());
            let mut needed: Vec<usize> = producers.collect();
            needed.sort_unstable();
            needed.dedup();
            needed
        })
        .collect();

    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (index, needed) in needed.iter().enumerate() {
        needed.iter().for_each(|&from| readers[from].push(index));
    }
    let mut missing: Vec<usize> = needed.iter().map(Vec::len).collect();
    let ready = (0..nodes.len()).filter(|&index| missing[index] == 0);
    let mut ready: BinaryHeap<Reverse<usize>> = ready.map(Reverse).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(Reverse(index)) = ready.pop() {
        order.push(index);
        for &reader in &readers[index] {
            missing[reader] -= 1;
            if missing[reader] == 0 {
                ready.push(Reverse(reader));
            }
        }
    }

    match missing.iter().position(|&missing| missing > 0) {
        None => Ok(order),
        Some(stuck) => Err(cycle(nodes, &needed, &missing, stuck)),
    }
}

/// Describes a cycle that the node `stuck` is in or comes after.
fn cycle(
    nodes: &[NodeProto],
    needed: &[Vec<usize>],
    missing: &[usize],
    stuck: usize,
) -> ModelError {
    // Each node that is stuck needs another one that is, so this comes back to where it was.
    let mut path = vec![stuck];
    let mut position: HashMap<usize, usize> = HashMap::from([(stuck, 0)]);
    let cycle = loop {
        let last = path[path.len() - 1];
        let Some(&next) = needed[last].iter().find(|&&next| missing[next] > 0) else {
            break &path[..];
        };
        if let Some(&start) = position.get(&next) {
            break &path[start..];
        }
        position.insert(next, path.len());
        path.push(next);
    };

    let describe = |&index: &usize| format!("`{}`", walk::describe(&nodes[index]));
    let others: Vec<String> = cycle[1..].iter().take(MOST_NAMED).map(describe).collect();
    ModelError::Node {
        node: walk::describe(&nodes[cycle[0]]),
        reason: match (others.len(), cycle.len() - 1) {
            (0, _) => "uses its own output".to_owned(),
            (named, all) => format!(
                "needs its own output, by way of {}{}",
                others.join(", "),
                if named < all { " and others" } else { "" }
            ),
        },
    }
}
