//! `POST /v1/classify`: an image as the body, in a form, or in a request's JSON.

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
    fn of(request: &MessageDescriptor) -> Self {
        let image = request.get_field_by_name("image").expect("the contract");
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
    let kind = match headers.get(CONTENT_TYPE) {
        None => "",
        Some(kind) => kind.to_str().unwrap_or("?"),
    };
    let name = kind.split(';').next().unwrap_or_default().trim();
    let name = name.to_ascii_lowercase();
    let field = FileField::of(of);
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
    let multipart::Form { file, fields } = multipart::read(body, boundary)?;
    let file = file.ok_or("the form has no file; send the image as the field `image`")?;
    let mut head = from_parameters(of, &[given, &fields].concat())?;
    head.extend_from_slice(&field.head(file.len()));
    Ok(vec![head.into(), file])
}

#[cfg(test)]
mod tests {
    use super::{super::schema::Method, *};
    use crate::proto::{ClassifyRequest, Image, RawFrame, image::Source};

    fn read(kind: &str, query: &str, body: &str) -> Result<ClassifyRequest, String> {
        let mut headers = HeaderMap::new();
        if !kind.is_empty() {
            headers.insert(CONTENT_TYPE, kind.parse().unwrap());
        }
        let of = Method::classifier("Classify").input;
        let input = input(&of, &headers, Some(query)).map_err(|refusal| refusal.message)?;
        let Input::Body(form) = input else {
            panic!("the message is made of the body")
        };
        let body = Bytes::from(body.to_owned());
        let pieces = match form {
            BodyForm::Tail(head) => vec![head(body.len()), body],
            BodyForm::Whole(convert) => convert(body)?,
        };
        Ok(ClassifyRequest::decode(&pieces.concat()[..]).unwrap())
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
