//! Embeddings: what the last linear layer reads, as a second output of the serving graph.

use super::{
    super::{
        ModelError,
        onnx::{GraphProto, NodeProto, ValueInfoProto, tensor_proto::DataType},
    },
    BodyPrecision, EMBEDDING, Head, ServingGraph, int_attribute, node, tensor_type,
    walk::Names,
};

/// Where the embedding is in the graph.
#[derive(Clone, Debug)]
pub(super) struct Embedding {
    /// The tensor that the last linear layer reads.
    tensor: String,
    /// How many values it has for each image.
    size: usize,
    is_double: bool,
}

/// A serving graph as an ONNX file, for an engine.
pub struct Serving {
    /// The file.
    pub onnx: Vec<u8>,
    /// How many values the output [`EMBEDDING`] has for each image; `None` without that output.
    pub embedding: Option<usize>,
}

impl Embedding {
    /// What the last linear layer before the tensor `scores` reads.
    ///
    /// # Errors
    /// Why there is no such layer.
    pub(super) fn find(graph: &GraphProto, scores: &str) -> Result<Self, String> {
        let head = Head::before(graph, scores).map_err(|error| error.to_string())?;
        Ok(Self {
            tensor: head.from,
            size: head.features,
            is_double: head.elem == DataType::Double,
        })
    }

    /// Adds the output, `float32 [N, size]`.
    fn add(&self, graph: &mut GraphProto) {
        let mut names = Names::of(graph);
        let axis = Some(int_attribute("axis", 1));
        let flatten =
            |target: &str| -> NodeProto { node("Flatten", &[&self.tensor], target, axis.clone()) };
        if self.is_double {
            let flat = names.free("embedding_double");
            let to_float = Some(int_attribute("to", DataType::Float as i64));
            let nodes = [flatten(&flat), node("Cast", &[&flat], EMBEDDING, to_float)];
            graph.node.extend(nodes);
        } else {
            graph.node.push(flatten(EMBEDDING));
        }
        graph.output.push(ValueInfoProto {
            name: Some(EMBEDDING.into()),
            r#type: Some(tensor_type(DataType::Float, &[-1, self.size as i64])),
            ..Default::default()
        });
    }
}

impl ServingGraph {
    /// How many values an embedding has.
    ///
    /// # Errors
    /// Why the network has none: its scores are not computed by a linear layer.
    pub fn embedding(&self) -> Result<usize, &str> {
        if self.features {
            return Err("the network has no last layer");
        }
        match &self.embedding {
            Ok(embedding) => Ok(embedding.size),
            Err(reason) => Err(reason),
        }
    }

    /// The same graph as if it had no embeddings.
    #[cfg(test)]
    pub(crate) fn without_embedding(mut self) -> Self {
        self.embedding = Err("it is not wanted".into());
        self
    }

    /// The graph as an ONNX file as [`Self::to_onnx`] writes it, with the output [`EMBEDDING`] if
    /// the network has one in this element type.
    ///
    /// # Errors
    /// As for [`Self::to_onnx`].
    pub fn to_serve(
        &self,
        batch: Option<usize>,
        precision: BodyPrecision,
    ) -> Result<Serving, ModelError> {
        if let (Ok(size), Ok(embedding)) = (self.embedding(), &self.embedding) {
            let mut with_embedding = self.clone();
            embedding.add(with_embedding.model.graph.get_or_insert_default());
            match with_embedding.to_onnx(batch, precision) {
                Ok(onnx) => {
                    return Ok(Serving {
                        onnx,
                        embedding: Some(size),
                    });
                }
                Err(error) => tracing::debug!("served without embeddings: {error}"),
            }
        }
        Ok(Serving {
            onnx: self.to_onnx(batch, precision)?,
            embedding: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Manifest, Normalization, decode,
        graph::{IMAGES, LOGITS},
        onnx::ModelProto,
        testing::{self, CLASSES, assert_close, graph, run, tiny, tiny_images},
    };

    const IMAGENET: Normalization = Normalization::IMAGENET;

    fn serving(model: &ModelProto) -> ServingGraph {
        ServingGraph::new(model.clone(), &IMAGENET.into(), None).unwrap()
    }

    /// The outputs of a network for [`tiny_images`]: logits and embedding.
    fn outputs(onnx: Vec<u8>) -> [Vec<f32>; 2] {
        let network = rten::Model::load(onnx).unwrap();
        let images = tiny_images();
        let images = rten::ValueView::from_shape([2, 4, 6, 3], &images[..]).unwrap();
        let [input, logits, embedding] =
            [IMAGES, LOGITS, EMBEDDING].map(|name| network.node_id(name).unwrap());
        let outputs = network.run_n(vec![(input, images.into())], [logits, embedding], None);
        outputs.unwrap().map(|output| {
            let ([_, _], values) = output.into_shape_vec::<f32, 2>().unwrap();
            values
        })
    }

    /// The scores that [`tiny`]'s last layer makes of features.
    fn scores(embedding: &[f32]) -> Vec<f32> {
        let score = |features: &[f32], class: usize| -> f32 {
            let weight = &testing::WEIGHT[3 * class..3 * class + 3];
            let products = features.iter().zip(weight).map(|(x, w)| x * w);
            products.sum::<f32>() + testing::BIAS[class]
        };
        embedding
            .chunks(3)
            .flat_map(|features| (0..CLASSES).map(move |class| score(features, class)))
            .collect()
    }

    #[test]
    fn the_embedding_is_what_the_last_layer_reads_and_changes_no_bit_of_the_logits() {
        let mut with_softmax = tiny();
        let nodes = &mut graph(&mut with_softmax).node;
        nodes.last_mut().unwrap().output = vec!["raw".into()];
        nodes.push(testing::node("Softmax", &["raw"], "scores").with_int("axis", 1));
        for model in [tiny(), with_softmax] {
            let serving = serving(&model);
            assert_eq!(serving.embedding(), Ok(3));
            let plain = serving.to_onnx(None, BodyPrecision::Fp32).unwrap();
            let plain = run(plain, &tiny_images(), [2, 4, 6, 3]);
            for precision in [BodyPrecision::Fp32, BodyPrecision::Fp16] {
                let with = serving.to_serve(None, precision).unwrap();
                assert_eq!(with.embedding, Some(3), "{precision:?}");
                if precision == BodyPrecision::Fp32 {
                    let [logits, embedding] = outputs(with.onnx);
                    assert_eq!(logits, plain);
                    assert_close(&scores(&embedding), &logits, 1e-4);
                }
            }
        }
    }

    #[test]
    fn names_of_the_network_itself_do_not_matter() {
        let mut model = tiny();
        for node in &mut graph(&mut model).node {
            for name in node.input.iter_mut().chain(&mut node.output) {
                if name == "flat" {
                    *name = EMBEDDING.into();
                }
            }
        }
        let [logits, embedding] = outputs(
            serving(&model)
                .to_serve(None, BodyPrecision::Fp32)
                .unwrap()
                .onnx,
        );
        assert_close(&scores(&embedding), &logits, 1e-4);
    }

    #[test]
    fn a_network_without_a_linear_layer_at_its_end_is_served_without() {
        let mut model = tiny();
        let nodes = &mut graph(&mut model).node;
        nodes.last_mut().unwrap().output = vec!["raw".into()];
        nodes.push(testing::node("Relu", &["raw"], "scores"));
        let serving = serving(&model);
        assert!(serving.embedding().unwrap_err().contains("Relu"));
        let without = serving.to_serve(None, BodyPrecision::Fp32).unwrap();
        assert_eq!(without.embedding, None);
    }

    #[test]
    fn files_have_the_logits_alone() {
        let file = serving(&tiny()).to_file(&Manifest::default()).unwrap();
        let written = decode(&file.into()).unwrap();
        assert_eq!(written.graph.unwrap().output.len(), 1);
    }
}
