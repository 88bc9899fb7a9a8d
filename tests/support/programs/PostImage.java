// Posts an image as programs do with Java's HttpClient, and prints the answers as JSON. The client asks for an
// upgrade to HTTP/2 (`Upgrade: h2c`) unless told not to.
import java.io.ByteArrayOutputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;

public class PostImage {
    static final String BOUNDARY = "----JavaBoundary";
    static final List<String> answers = new ArrayList<>();

    public static void main(String[] arguments) throws Exception {
        String server = arguments[0];
        Path file = Path.of(arguments[1]);
        byte[] image = Files.readAllBytes(file);
        String base64 = Base64.getMimeEncoder().encodeToString(image).replace("\r\n", "\\r\\n");
        BodyPublisher json = BodyPublishers.ofString("{\"image\": \"" + base64 + "\", \"top_k\": 2.0}");
        for (HttpClient.Version version : HttpClient.Version.values()) {
            HttpClient client = HttpClient.newBuilder().version(version).build();
            post(client, server + "/predict?top_k=2", "image/png", BodyPublishers.ofByteArray(image));
            post(client, server + "/predict?top_k=2", "image/png", BodyPublishers.ofFile(file));
            post(client, server + "/predict?top_k=2", "image/png", chunked(file));
            post(client, server + "/predict", "application/json", json);
            post(client, server + "/predict", "multipart/form-data; boundary=" + BOUNDARY, form(image));
            HttpRequest.Builder hesitant = request(server + "/predict?top_k=2", BodyPublishers.ofByteArray(image));
            send(client, hesitant.expectContinue(true).build());
        }
        System.out.println(answers);
    }

    static BodyPublisher chunked(Path file) {
        return BodyPublishers.ofInputStream(() -> {
            try {
                return Files.newInputStream(file);
            } catch (java.io.IOException error) {
                throw new java.io.UncheckedIOException(error);
            }
        });
    }

    static BodyPublisher form(byte[] image) throws Exception {
        ByteArrayOutputStream body = new ByteArrayOutputStream();
        String part = "--" + BOUNDARY + "\r\nContent-Disposition: form-data; name=";
        String file = part + "\"file\"; filename=\"digit-7.png\"\r\nContent-Type: image/png\r\n\r\n";
        body.write(file.getBytes(StandardCharsets.UTF_8));
        body.write(image);
        String rest = "\r\n" + part + "\"top_k\"\r\n\r\n2\r\n--" + BOUNDARY + "--\r\n";
        body.write(rest.getBytes(StandardCharsets.UTF_8));
        return BodyPublishers.ofByteArray(body.toByteArray());
    }

    static HttpRequest.Builder request(String address, BodyPublisher body) {
        return HttpRequest.newBuilder(URI.create(address)).POST(body);
    }

    static void post(HttpClient client, String address, String type, BodyPublisher body) throws Exception {
        send(client, request(address, body).header("Content-Type", type).build());
    }

    static void send(HttpClient client, HttpRequest request) throws Exception {
        var response = client.send(request, BodyHandlers.ofString());
        answers.add("[" + response.statusCode() + ", " + response.body() + "]");
    }
}
