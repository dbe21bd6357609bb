//! Classifies image files: `cargo run --example classify -- http://127.0.0.1:8001 cat.jpg dog.png`

use std::{env, error::Error, fs, time::Duration};

use resnet18_server::{
    client::{self, Server},
    proto::{ClassifyRequest, Image},
};
use tokio::time::Instant;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let address = arguments.next().ok_or("usage: classify SERVER IMAGE...")?;
    let server: Server = address.parse()?;
    let mut client = client::connect(&server).await?;

    for path in arguments {
        let request = ClassifyRequest {
            image: Some(Image::encoded(fs::read(&path)?)),
            top_k: 3,
            ..Default::default()
        };

        // A server that is full asks its callers to retry. The deadline covers all attempts.
        let deadline = Instant::now() + Duration::from_secs(10);
        let answer = client::classify_with_retries(&mut client, request, deadline).await?;

        println!("{path}");
        for class in answer.response.classifications {
            println!("{:7.1} %  {}", class.probability * 100.0, class.label);
        }
    }
    Ok(())
}
