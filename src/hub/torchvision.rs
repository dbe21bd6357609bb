//! The pretrained ResNets of torchvision: the names of their files, which bear the beginning of the
//! SHA-256 of what they hold, and the preprocessing that belongs to each set of weights.
//!
//! Source: the enumerations `ResNet18_Weights` and so on in `torchvision/models/resnet.py`.

use super::error::HubError;

/// Where torchvision's files are.
pub(super) const URL: &str = "https://download.pytorch.org/models";

/// The name of the first weights that torchvision published for a network.
const V1: &str = "IMAGENET1K_V1";
/// The name of those that were trained with its newer recipe.
const V2: &str = "IMAGENET1K_V2";

/// One set of weights of one network.
#[derive(Debug, PartialEq, Eq)]
pub struct Weights {
    /// The network, as torchvision calls it.
    pub network: &'static str,
    /// The set, as torchvision calls it.
    pub set: &'static str,
    /// The file's name: `NAME-HASH.pth`.
    pub file: &'static str,
    /// Length of the shorter side after scaling and before the crop of 224×224, in pixels.
    pub resize_shorter_side: u32,
}

const fn weights(
    network: &'static str,
    set: &'static str,
    file: &'static str,
    resize_shorter_side: u32,
) -> Weights {
    Weights {
        network,
        set,
        file,
        resize_shorter_side,
    }
}

/// All sets of weights; of each network, the set that torchvision takes by default is the last.
static WEIGHTS: [Weights; 17] = [
    weights("resnet18", V1, "resnet18-f37072fd.pth", 256),
    weights("resnet34", V1, "resnet34-b627a593.pth", 256),
    weights("resnet50", V1, "resnet50-0676ba61.pth", 256),
    weights("resnet50", V2, "resnet50-11ad3fa6.pth", 232),
    weights("resnet101", V1, "resnet101-63fe2227.pth", 256),
    weights("resnet101", V2, "resnet101-cd907fc2.pth", 232),
    weights("resnet152", V1, "resnet152-394f9c45.pth", 256),
    weights("resnet152", V2, "resnet152-f82ba261.pth", 232),
    weights("resnext50_32x4d", V1, "resnext50_32x4d-7cdf4587.pth", 256),
    weights("resnext50_32x4d", V2, "resnext50_32x4d-1a0047aa.pth", 232),
    weights("resnext101_32x8d", V1, "resnext101_32x8d-8ba56ff5.pth", 256),
    weights("resnext101_32x8d", V2, "resnext101_32x8d-110c445d.pth", 232),
    // Its only set was trained with the newer recipe.
    weights("resnext101_64x4d", V1, "resnext101_64x4d-173b62eb.pth", 232),
    weights("wide_resnet50_2", V1, "wide_resnet50_2-95faca4d.pth", 256),
    weights("wide_resnet50_2", V2, "wide_resnet50_2-9ba9bcbe.pth", 232),
    weights("wide_resnet101_2", V1, "wide_resnet101_2-32ee1156.pth", 256),
    weights("wide_resnet101_2", V2, "wide_resnet101_2-d733dc28.pth", 232),
];

impl Weights {
    /// The weights that `NETWORK` or `NETWORK@SET` names.
    ///
    /// # Errors
    /// A network or set that torchvision does not have, with those that it has.
    pub(super) fn find(text: &str) -> Result<&'static Self, HubError> {
        let (network, set) = match text.split_once('@') {
            Some((network, set)) => (network, Some(set)),
            None => (text, None),
        };
        let of_network: Vec<&'static Self> = WEIGHTS
            .iter()
            .filter(|weights| weights.network == network)
            .collect();
        let Some(default) = of_network.last() else {
            let mut names: Vec<&str> = WEIGHTS.iter().map(|weights| weights.network).collect();
            names.dedup();
            return Err(HubError::Name(format!(
                "torchvision:{text}: there is no network {network}; there are {}",
                names.join(", ")
            )));
        };
        let Some(set) = set.filter(|set| *set != "DEFAULT") else {
            return Ok(default);
        };
        let found = of_network.iter().find(|weights| weights.set == set);
        found.copied().ok_or_else(|| {
            let sets: Vec<&str> = of_network.iter().map(|weights| weights.set).collect();
            HubError::Name(format!(
                "torchvision:{text}: there is no {set}; {network} has {}",
                sets.join(" and ")
            ))
        })
    }

    /// The hexadecimal digits that the file's SHA-256 begins with.
    pub(super) fn hash(&self) -> &'static str {
        let stem = self.file.trim_end_matches(".pth");
        stem.rsplit('-').next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_its_default_and_its_own_preprocessing() {
        for (text, file, resize) in [
            ("resnet18", "resnet18-f37072fd.pth", 256),
            ("resnet50", "resnet50-11ad3fa6.pth", 232),
            ("resnet50@DEFAULT", "resnet50-11ad3fa6.pth", 232),
            ("resnet50@IMAGENET1K_V1", "resnet50-0676ba61.pth", 256),
            ("resnext101_64x4d", "resnext101_64x4d-173b62eb.pth", 232),
        ] {
            let weights = Weights::find(text).unwrap();
            assert_eq!((weights.file, weights.resize_shorter_side), (file, resize));
        }
    }

    #[test]
    fn every_file_bears_eight_digits_of_its_hash() {
        for weights in &WEIGHTS {
            let hash = weights.hash();
            assert!(
                hash.len() == 8 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()),
                "{hash}"
            );
            assert!(weights.file.starts_with(weights.network));
        }
    }

    #[test]
    fn unknown_names_are_refused_with_the_known_ones() {
        let error = |text| Weights::find(text).unwrap_err().to_string();
        assert!(error("resnet19").contains("there are resnet18, resnet34, resnet50,"));
        assert!(error("resnet18@IMAGENET1K_V2").contains("resnet18 has IMAGENET1K_V1"));
    }
}
