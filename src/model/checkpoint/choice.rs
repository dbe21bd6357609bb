//! Chooses the network to import where a file has several, such as that of each epoch's end and its
//! running average.

use super::{
    CheckpointError,
    error::{list, unsupported},
    layout::Layout,
    tensor_set::TensorSet,
};

/// The network that is imported.
pub(super) struct Choice {
    pub(super) set: TensorSet,
    pub(super) layout: Layout,
    /// Where other networks of the same set are, whose tensors are not those of this one.
    pub(super) others: Vec<Layout>,
    /// What the user should know about the choice.
    pub(super) note: Option<String>,
}

/// Most networks of a file that are looked at.
const MAX_NETWORKS: usize = 64;

struct Candidate {
    set: usize,
    layout: Layout,
    /// Its path in the file.
    path: String,
    has_head: bool,
}

/// Chooses the network that `key` names, else the average of the weights, else the only one.
///
/// # Errors
/// No network, none with that name, or several of which none is the one to take.
pub(super) fn choose(sets: Vec<TensorSet>, key: Option<&str>) -> Result<Choice, CheckpointError> {
    let mut sets = sets;
    let layouts: Vec<Vec<Layout>> = sets.iter().map(Layout::find).collect();
    if layouts.iter().map(Vec::len).sum::<usize>() > MAX_NETWORKS {
        return Err(unsupported(format!(
            "has more than {MAX_NETWORKS} networks; save the one to import by itself"
        )));
    }
    join_heads(&mut sets, &layouts);
    let found = candidates(&sets, &layouts);
    if found.is_empty() {
        return Err(no_network(&sets));
    }

    let paths = || found.iter().map(|candidate| shown(&candidate.path));
    let named: Vec<&Candidate> = match key {
        None => found.iter().collect(),
        Some(key) => {
            let key = key.trim_matches('.');
            found
                .iter()
                .filter(|found| is_named(&found.path, key))
                .collect()
        }
    };
    if named.is_empty() {
        return Err(unsupported(format!(
            "has no network under `{}`, but under {}",
            key.unwrap_or_default(),
            list(&paths().collect::<Vec<_>>())
        )));
    }

    let average: Vec<&Candidate> = named
        .iter()
        .copied()
        .filter(|found| is_average(&found.path) && found.has_head)
        .collect();
    let whole: Vec<&Candidate> = named
        .iter()
        .copied()
        .filter(|found| found.has_head)
        .collect();
    let chosen = match (&average[..], &whole[..], &named[..]) {
        ([one], _, _) | ([], [one], _) | ([], [], [one]) => *one,
        (several @ [_, _, ..], _, _) | ([], several @ [_, _, ..], _) | ([], [], several) => {
            let paths: Vec<String> = several.iter().map(|found| shown(&found.path)).collect();
            return Err(unsupported(format!(
                "has {} networks: {}; choose one of them with --key NAME",
                several.len(),
                list(&paths)
            )));
        }
    };

    let others: Vec<String> = paths()
        .filter(|path| *path != shown(&chosen.path))
        .collect();
    let note = (!others.is_empty()).then(|| {
        let average = if is_average(&chosen.path) && key.is_none() {
            ", the average of the weights"
        } else {
            ""
        };
        format!(
            "the weights under `{}` were taken{average}; --key chooses others: {}",
            shown(&chosen.path),
            list(&others)
        )
    });
    let (layout, set) = (chosen.layout.clone(), chosen.set);
    let others = found
        .iter()
        .filter(|other| other.set == set && other.layout != layout)
        .map(|other| other.layout.clone())
        .collect();
    Ok(Choice {
        set: sets.swap_remove(set),
        layout,
        others,
        note,
    })
}

/// All networks of the file, each once.
fn candidates(sets: &[TensorSet], layouts: &[Vec<Layout>]) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    for (index, (set, layouts)) in sets.iter().zip(layouts).enumerate() {
        for layout in layouts {
            let known = found
                .iter()
                .position(|other| layout.is_same(set, &other.layout, &sets[other.set]));
            let path = joined(&set.path, layout.prefix.trim_end_matches('.'));
            let candidate = Candidate {
                set: index,
                has_head: !layout.heads(set).is_empty(),
                layout: layout.clone(),
                path,
            };
            match known {
                // The same tensors may be in another set without their last layer.
                Some(known) if candidate.has_head && !found[known].has_head => {
                    found[known] = candidate;
                }
                Some(_) => {}
                None => found.push(candidate),
            }
        }
    }
    found
}

/// Gives a network without a last layer that of the set beside it, as in
/// `{"encoder": …, "classifier": …}`.
fn join_heads(sets: &mut [TensorSet], layouts: &[Vec<Layout>]) {
    for (index, found) in layouts.iter().enumerate() {
        let set = &sets[index];
        let [layout] = &found[..] else { continue };
        let (Some(features), true) = (layout.features(set), layout.heads(set).is_empty()) else {
            continue;
        };

        let parent = parent(&set.path);
        let fits = |index: usize| {
            let other = &sets[index];
            let linear = |(name, shape): (&String, &[usize])| {
                name.rsplit('.').next() == Some("weight")
                    && matches!(shape, [_, inputs] if *inputs == features)
            };
            !other.path.is_empty()
                && self::parent(&other.path) == parent
                && layouts[index].is_empty()
                && other
                    .tensors
                    .iter()
                    .any(|(name, tensor)| linear((name, tensor.shape())))
        };
        let mut beside = (0..sets.len()).filter(|other| *other != index && fits(*other));
        if let (Some(head), None) = (beside.next(), beside.next()) {
            let name = last(&sets[head].path).to_owned();
            let tensors = sets[head].tensors.clone();
            for (tensor, value) in tensors {
                let tensor = format!("{name}.{tensor}");
                sets[index].tensors.entry(tensor).or_insert(value);
            }
        }
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(parent, _)| parent)
}

fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

fn joined(path: &str, name: &str) -> String {
    match (path.is_empty(), name.is_empty()) {
        (true, _) => name.to_owned(),
        (false, true) => path.to_owned(),
        (false, false) => format!("{path}.{name}"),
    }
}

/// The path as it is shown, and given with --key: a dot for the top of the file.
fn shown(path: &str) -> String {
    if path.is_empty() {
        ".".to_owned()
    } else {
        path.to_owned()
    }
}

/// Whether `key` is the path, or its beginning or end.
fn is_named(path: &str, key: &str) -> bool {
    let ends =
        |rest: Option<&str>| rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    ends(path.strip_prefix(key))
        || path
            .strip_suffix(key)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether the path names a running average of the weights: a word of it is `ema` or `swa`.
fn is_average(path: &str) -> bool {
    path.split(|character: char| !character.is_ascii_alphanumeric())
        .any(|word| word.eq_ignore_ascii_case("ema") || word.eq_ignore_ascii_case("swa"))
}

fn no_network(sets: &[TensorSet]) -> CheckpointError {
    let names: Vec<String> = sets
        .iter()
        .flat_map(|set| set.tensors.keys().map(|name| joined(&set.path, name)))
        .collect();
    unsupported(format!(
        "is not a ResNet: it has no numbered stages of blocks such as `layer1.0.conv1.weight`, but \
         {}; export other networks to ONNX",
        list(&names)
    ))
}
