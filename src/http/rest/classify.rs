//! `POST /v1/classify`: an image as the body, in a form, or in a request's JSON. `POST
//! /v1/classify-batch`: several images in a form, or in JSON.

use std::sync::Arc;

use axum::http::{HeaderMap, header::CONTENT_TYPE};
use bytes::{BufMut, Bytes, BytesMut};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};
use prost_reflect::{MessageDescriptor, Value};

use super::{
    call::Input,
    multipart,
    schema::{from_json, from_parameters, query},
    status::Refusal,
};
use crate::grpc::BodyForm;

/// The types of bodies that are an image. The last is what `curl --data-binary` says.
const IMAGE_TYPES: [&str; 2] = [
    "application/octet-stream",
    "application/x-www-form-urlencoded",
];

/// The field of a request that holds the image, and the one within it that holds a file.
#[derive(Clone, Copy)]
struct FileField {
    image: u32,
    encoded: u32,
}

impl FileField {
    /// `name` is that of the field with the image or images.
    fn of(request: &MessageDescriptor, name: &str) -> Self {
        let image = request.get_field_by_name(name).expect("the contract");
        let kind = image.kind();
        let message = kind.as_message().expect("an image is a message");
        let encoded = message.get_field_by_name("encoded").expect("the contract");
        Self {
            image: image.number(),
            encoded: encoded.number(),
        }
    }

    /// What stands before a file of this length on the wire.
    fn head(self, length: usize) -> Bytes {
        let length = length as u64;
        let image = key_len(self.encoded) as u64 + encoded_len_varint(length) as u64 + length;
        let mut head = BytesMut::new();
        encode_key(self.image, WireType::LengthDelimited, &mut head);
        encode_varint(image, &mut head);
        encode_key(self.encoded, WireType::LengthDelimited, &mut head);
        encode_varint(length, &mut head);
        head.freeze()
    }
}

/// The request that a call's headers, query and body stand for.
pub(super) fn input(
    of: &MessageDescriptor,
    headers: &HeaderMap,
    parameters: Option<&str>,
) -> Result<Input, Refusal> {
    let given = query(parameters).map_err(Refusal::invalid)?;
    let first = from_parameters(of, &given).map_err(Refusal::invalid)?;
    let (kind, name) = content_type(headers);
    let field = FileField::of(of, "image");
    let of = of.clone();

    if name == "application/json" {
        return Ok(whole(move |body| json(&of, field, &first, &body)));
    }
    if let Some(boundary) = multipart::boundary(kind) {
        let boundary = boundary.map_err(Refusal::invalid)?;
        return Ok(whole(move |body| {
            form(&of, field, &given, &body, &boundary)
        }));
    }
    if name.is_empty() || name.starts_with("image/") || IMAGE_TYPES.contains(&&name[..]) {
        let head = move |length| [&first[..], &field.head(length)].concat().into();
        return Ok(Input::Body(BodyForm::Tail(Arc::new(head))));
    }
    Err(Refusal::unsupported_type(
        "send the image's file as the body (image/*, application/octet-stream), in a form \
         (multipart/form-data), or as base64 in JSON (application/json)",
    ))
}

/// The request for several images that a call's headers, query and body stand for.
pub(super) fn batch(
    of: &MessageDescriptor,
    headers: &HeaderMap,
    parameters: Option<&str>,
) -> Result<Input, Refusal> {
    let given = query(parameters).map_err(Refusal::invalid)?;
    let first = from_parameters(of, &given).map_err(Refusal::invalid)?;
    let (kind, name) = content_type(headers);
    let field = FileField::of(of, "images");
    let of = of.clone();

    if name == "application/json" {
        return Ok(whole(move |body| {
            let message = from_json(&of, &body)?;
            Ok(vec![first.clone().into(), message.encode_to_vec().into()])
        }));
    }
    if let Some(boundary) = multipart::boundary(kind) {
        let boundary = boundary.map_err(Refusal::invalid)?;
        return Ok(whole(move |body| {
            let multipart::Form { files, fields } = multipart::read(&body, &boundary)?;
            if files.is_empty() {
                return Err("the form has no file; send each image as a field `images`".into());
            }
            let fields = [&given[..], &fields].concat();
            let mut pieces = vec![from_parameters(&of, &fields)?.into()];
            for file in files {
                pieces.extend([field.head(file.len()), file]);
            }
            Ok(pieces)
        }));
    }
    Err(Refusal::unsupported_type(
        "send the images' files in a form (multipart/form-data), or as base64 in JSON \
         (application/json)",
    ))
}

/// The type of a request's body as it was sent, and its name alone.
fn content_type(headers: &HeaderMap) -> (&str, String) {
    let kind = match headers.get(CONTENT_TYPE) {
        None => "",
        Some(kind) => kind.to_str().unwrap_or("?"),
    };
    let name = kind.split(';').next().unwrap_or_default().trim();
    (kind, name.to_ascii_lowercase())
}

fn whole(convert: impl Fn(Bytes) -> Result<Vec<Bytes>, String> + Send + Sync + 'static) -> Input {
    Input::Body(BodyForm::Whole(Arc::new(convert)))
}

/// A request in JSON; what it sets goes before what the query has set.
fn json(
    of: &MessageDescriptor,
    field: FileField,
    first: &[u8],
    body: &[u8],
) -> Result<Vec<Bytes>, String> {
    let mut message = from_json(of, body)?;
    // The file is not copied once more.
    let file = Some(&mut message)
        .filter(|message| message.has_field_by_number(field.image))
        .and_then(|message| message.get_field_by_number_mut(field.image))
        .and_then(Value::as_message_mut)
        .filter(|image| image.has_field_by_number(field.encoded))
        .and_then(|image| image.get_field_by_number_mut(field.encoded))
        .and_then(|encoded| match encoded {
            Value::Bytes(bytes) => Some(std::mem::take(bytes)),
            _ => None,
        });
    let mut head = BytesMut::from(first);
    head.put_slice(&message.encode_to_vec());
    let Some(file) = file else {
        return Ok(vec![head.freeze()]);
    };
    head.put_slice(&field.head(file.len()));
    Ok(vec![head.freeze(), file])
}

/// A form with the image and perhaps the parameters.
fn form(
    of: &MessageDescriptor,
    field: FileField,
    given: &[(String, String)],
    body: &Bytes,
    boundary: &str,
) -> Result<Vec<Bytes>, String> {
    let multipart::Form { mut files, fields } = multipart::read(body, boundary)?;
    if files.len() > 1 {
        return Err(
            "the form has more than one file; send one image a request, or several to \
             /v1/classify-batch"
                .into(),
        );
    }
    let file = files.pop();
    let file = file.ok_or("the form has no file; send the image as the field `image`")?;
    let mut head = from_parameters(of, &[given, &fields].concat())?;
    head.extend_from_slice(&field.head(file.len()));
    Ok(vec![head.into(), file])
}

#[cfg(test)]
mod tests {
    use super::{super::schema::Method, *};
    use crate::proto::{
        ClassifyBatchRequest, ClassifyRequest, Image, RawFrame, Region, RegionUnit, image::Source,
    };

    fn read(kind: &str, query: &str, body: &str) -> Result<ClassifyRequest, String> {
        let mut headers = HeaderMap::new();
        if !kind.is_empty() {
            headers.insert(CONTENT_TYPE, kind.parse().unwrap());
        }
        let of = Method::classifier("Classify").input;
        let input = input(&of, &headers, Some(query)).map_err(|refusal| refusal.message)?;
        Ok(ClassifyRequest::decode(&message(input, body)?[..]).unwrap())
    }

    fn message(input: Input, body: &str) -> Result<Vec<u8>, String> {
        let Input::Body(form) = input else {
            panic!("the message is made of the body")
        };
        let body = Bytes::from(body.to_owned());
        let pieces = match form {
            BodyForm::Tail(head) => vec![head(body.len()), body],
            BodyForm::Whole(convert) => convert(body)?,
        };
        Ok(pieces.concat())
    }

    fn read_batch(kind: &str, query: &str, body: &str) -> Result<ClassifyBatchRequest, String> {
        let headers = [(CONTENT_TYPE, kind.parse().unwrap())]
            .into_iter()
            .collect();
        let of = Method::classifier("ClassifyBatch").input;
        let input = batch(&of, &headers, Some(query)).map_err(|refusal| refusal.message)?;
        Ok(ClassifyBatchRequest::decode(&message(input, body)?[..]).unwrap())
    }

    #[test]
    fn several_files_of_a_form_are_a_batch() {
        let file = |content: &str| {
            format!("--b\r\nContent-Disposition: form-data; name=images\r\n\r\n{content}\r\n")
        };
        let form = file("one") + &file("") + &file("three") + "--b--";
        let kind = "multipart/form-data; boundary=b";
        let expected = ClassifyBatchRequest {
            images: ["one", "", "three"].map(|file| Image::encoded(file)).into(),
            top_k: 3,
            deny_labels: vec!["a".into(), "b".into()],
            ..ClassifyBatchRequest::default()
        };
        let query = "top_k=3&deny_labels=a&deny_labels=b";
        assert_eq!(read_batch(kind, query, &form), Ok(expected.clone()));
        let json = r#"{"top_k": 3, "images": [{"encoded": "b25l"}, {"encoded": ""},
            {"encoded": "dGhyZWU="}], "deny_labels": ["a", "b"]}"#;
        assert_eq!(read_batch("application/json", "", json), Ok(expected));

        assert!(
            read_batch(kind, "", "--b--")
                .unwrap_err()
                .contains("no file")
        );
        let one = read_batch("image/png", "", "file").unwrap_err();
        assert!(one.contains("multipart/form-data"), "{one}");
        assert!(
            read(kind, "", &form)
                .unwrap_err()
                .contains("/v1/classify-batch")
        );
    }

    #[test]
    fn regions_are_json_in_a_query_or_a_form() {
        let regions = r#"[{"left": 1, "width": 2}, {"top": 0.5, "unit": "REGION_UNIT_FRACTIONS"}]"#;
        let form = format!(
            "--b\r\nContent-Disposition: form-data; name=image\r\n\r\nfile\r\n--b\r\n\
             Content-Disposition: form-data; name=regions\r\n\r\n{regions}\r\n--b--"
        );
        let expected = vec![
            Region {
                left: 1.0,
                width: 2.0,
                ..Region::default()
            },
            Region {
                top: 0.5,
                unit: RegionUnit::Fractions.into(),
                ..Region::default()
            },
        ];
        let by_form = read("multipart/form-data; boundary=b", "", &form).unwrap();
        assert_eq!(by_form.regions, expected);
        let query = "regions=[{%22left%22:1,%22width%22:2}]&regions={%22top%22:0.5,\
                     %22unit%22:%22REGION_UNIT_FRACTIONS%22}";
        assert_eq!(read("image/png", query, "file").unwrap().regions, expected);
        for wrong in [
            "regions=",
            "regions=[1]",
            "regions=[{%22x%22:1}]",
            "regions=7",
        ] {
            let error = read("image/png", wrong, "file").unwrap_err();
            assert!(
                error.contains("`regions`") && error.contains("JSON"),
                "{error}"
            );
        }
    }

    fn expected(top_k: u32) -> ClassifyRequest {
        ClassifyRequest {
            model: "m".into(),
            image: Some(Image::encoded(&b"file"[..])),
            top_k,
            ..ClassifyRequest::default()
        }
    }

    #[test]
    fn every_form_of_a_request_is_the_same_message() {
        for kind in [
            "",
            "image/jpeg",
            "Image/PNG; a=b",
            "application/octet-stream",
            "application/x-www-form-urlencoded",
        ] {
            assert_eq!(
                read(kind, "model=m&top_k=3", "file"),
                Ok(expected(3)),
                "{kind}"
            );
        }
        let json = r#"{"model": "m", "top_k": 3, "image": {"encoded": "ZmlsZQ=="}}"#;
        assert_eq!(read("application/json", "", json), Ok(expected(3)));
        assert_eq!(read("application/json", "top_k=9", json), Ok(expected(3)));
        let form = "--b\r\nContent-Disposition: form-data; name=image\r\n\r\nfile\r\n--b\r\n\
                    Content-Disposition: form-data; name=\"top_k\"\r\n\r\n3\r\n--b--";
        let kind = "multipart/form-data; boundary=b";
        assert_eq!(read(kind, "model=m", form), Ok(expected(3)));
        assert!(read(kind, "top_k=3", form).unwrap_err().contains("twice"));
    }

    #[test]
    fn raw_frames_are_taken_in_json() {
        let json =
            r#"{"image": {"raw": {"format": "PIXEL_FORMAT_GRAY8", "width": 1, "data": "AA=="}}}"#;
        let request = read("application/json", "", json).unwrap();
        let Some(Image {
            source: Some(Source::Raw(RawFrame { width, data, .. })),
        }) = request.image
        else {
            panic!("{request:?}")
        };
        assert_eq!((width, &data[..]), (1, &[0][..]));
        assert_eq!(
            read("application/json", "", "{}"),
            Ok(ClassifyRequest::default())
        );
    }

    #[test]
    fn other_types_are_refused() {
        for kind in ["text/plain", "application/grpc-web", "application/xml"] {
            assert!(
                read(kind, "", "").unwrap_err().contains("image/*"),
                "{kind}"
            );
        }
        let kind = "multipart/form-data";
        assert!(read(kind, "", "").unwrap_err().contains("boundary"));
        let kind = "multipart/form-data; boundary=b";
        assert!(read(kind, "", "--b--").unwrap_err().contains("no file"));
    }
}
